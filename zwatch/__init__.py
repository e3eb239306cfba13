"""zwatch serves a text-to-image model and follows a symlink to its next version."""

__version__ = "0.1.0"
