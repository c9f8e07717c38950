"""The release, for pyproject.toml and for what is written into artifacts."""

__version__ = "0.2.0"
