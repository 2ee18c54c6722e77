"""Components that other packages offer to OpenTelemetry by name: exporters, samplers, id generators."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


class EntryPointMissingError(LookupError):
    """No installed package offers that name in that group."""


def installed_names(group: str) -> set[str]:
    """Return the names that installed packages offer in a group."""
    return {entry_point.name for entry_point in entry_points(group=group)}


def load(group: str, name: str) -> Any:
    """Import what `name` stands for in a group; of several packages that offer it, the first on the path.

    Raises:
        EntryPointMissingError: nobody offers it.
        Exception: importing it failed.
    """
    for entry_point in entry_points(group=group, name=name):
        return entry_point.load()
    raise EntryPointMissingError(f"{name!r} in {group!r}")
