"""Sources of labelled images, one kind per file. `open.py` chooses the kind for a name or path.

To add a source: write a subclass of `base.IndexedSource` in a file of its own here, add a line to the table in
`open.py`, and add a test file to tests/data/sources/.
"""
