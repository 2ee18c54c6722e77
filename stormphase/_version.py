"""The one place where the version stands: the build reads it from here, and so does the scope of our spans."""

from __future__ import annotations

__version__ = "0.1.0"
