"""The version of the package, for what it writes. pyproject.toml, CITATION.cff and CHANGELOG.md state it too."""

__version__ = "0.1.0"
