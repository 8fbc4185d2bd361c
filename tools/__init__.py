"""Programs for maintainers: the tables of README.md and docs/, studies and benchmark suites. Not in the wheel."""
