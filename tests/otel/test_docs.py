"""docs/otel.md says what the code does: the same names, arguments and variables, in both directions."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import stormphase
import stormphase.otel
from stormphase.otel import OTelBridge
from stormphase.otel._arguments import EVENTS, EVENTS_TO, SPAN_BUDGET
from stormphase.otel._settings import Settings

TELEMETRY_NAME = re.compile(r"stormphase\.[a-z_]+(\.[a-z_]+)*")
NO_TELEMETRY = {"stormphase.otel"}  # what we import, not what we send


@pytest.fixture(scope="module")
def text() -> str:
    """Return the page."""
    return (Path(__file__).parents[2] / "docs" / "otel.md").read_text(encoding="utf-8")


def names_in_code() -> set[str]:
    """Return every string in the room that names an attribute, an event or an instrument."""
    room = Path(stormphase.otel.__file__).parent
    found = set()
    for path in room.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and TELEMETRY_NAME.fullmatch(node.value):
                found.add(node.value)
    modules = {f"stormphase.otel.{path.stem}" for path in room.glob("*.py")}
    return found - modules - NO_TELEMETRY


def test_every_name_that_is_sent_is_on_the_page_and_no_other(text: str) -> None:
    """Attributes, events and instruments of the page are those of the code."""
    on_page = {match.group() for match in re.finditer(r"(?<=`)stormphase\.[a-z_.]+(?=`)", text)}
    assert names_in_code() == on_page - NO_TELEMETRY


def test_every_argument_of_the_bridge_is_on_the_page(text: str) -> None:
    """Whoever reads the page has met every option, with its values and the default that has a number."""
    arguments = inspect.signature(OTelBridge).parameters
    providers = {"tracer_provider", "logger_provider", "meter_provider"}
    assert [] == [name for name in arguments if name not in providers and name not in text]
    assert [] == [value for value in (*EVENTS, *EVENTS_TO) if f'"{value}"' not in text and value != "logs"]
    assert f"budget of {SPAN_BUDGET:,} spans" in text


@pytest.mark.parametrize("variable", sorted(Settings.READ_HERE))
def test_every_variable_is_on_the_page(text: str, variable: str) -> None:
    """Each variable that configure() reads is in its table, if only as one of a family."""
    forms = (
        variable,
        re.sub(r"_(TRACES|LOGS|METRICS)_PROTOCOL", "_PROTOCOL", variable),
        re.sub(r"^OTEL_(BSP|BLRP)_.*", r"OTEL_\1_*", variable),
        variable.replace("EXPORT_TIMEOUT", "EXPORT_INTERVAL`, `_TIMEOUT"),
    )
    assert any(f"`{form}`" in text for form in forms)
