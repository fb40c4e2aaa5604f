"""The version of the package; the test of the command line compares it with ``pyproject.toml``."""

__version__ = "0.1.0"
