"""The version of the package. It has a module of its own so that lower layers can name it."""

__version__ = "0.1.0"
