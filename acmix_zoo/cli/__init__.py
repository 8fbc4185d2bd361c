"""The command line, one file per command. `cli.main` finds the file of a command."""
