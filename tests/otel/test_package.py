"""The room's public names: there when asked for, and nothing is loaded before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stormphase.otel

if TYPE_CHECKING:
    from conftest import RunPython


def test_importing_the_room_loads_no_sdk(run_python: RunPython) -> None:
    """`import stormphase.otel` loads nothing of OpenTelemetry until one of its names is used."""
    source = """
import sys
import stormphase.otel
print([name for name in sys.modules if name.startswith("opentelemetry")])
stormphase.otel.configure
print("opentelemetry.sdk.trace" in sys.modules)
"""
    assert "[]\nTrue\n" == run_python(source).stdout


def test_every_public_name_is_there() -> None:
    """Each name of the room can be asked for, is listed, and is the same object each time."""
    for name in stormphase.otel.__all__:
        assert name in dir(stormphase.otel)
        assert getattr(stormphase.otel, name) is getattr(stormphase.otel, name)
        assert name == getattr(stormphase.otel, name).__name__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match=r"module 'stormphase\.otel' has no attribute 'configur'"):
        stormphase.otel.configur  # noqa: B018
