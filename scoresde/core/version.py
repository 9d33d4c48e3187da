"""The version of the package, in its own file so that builds and ``--version`` can read it without importing torch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
