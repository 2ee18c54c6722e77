"""Options compose: whatever two of them are given together, each does what it does alone.

Every pair of choices stands together in some row of a covering array; each row is run as a program with something of
everything, and all that is told of it is compared.
"""

from __future__ import annotations

import inspect
import re

import story_options as options

from stormphase import PhaseTracker
from stormphase.otel import OTelBridge

_VARIABLE = re.compile(
    r"[\"']((?:STORMPHASE|OTEL)_[A-Z0-9_]+|TRACEPARENT|TRACESTATE|TERM|NO_COLOR|FORCE_COLOR|COLUMNS)[\"']"
)
_OF_LAUNCHERS = re.compile(r"[\"']([A-Z][A-Z0-9]*_[A-Z0-9_]+|RANK)[\"']")


def _arguments(kind):
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def _given(field):
    return {name for factor in options.FACTORS.values() for name in getattr(factor, field)}


def test_every_argument_of_the_tracker_is_an_option():
    """A new argument has to be added to the table, or this fails."""
    assert _arguments(PhaseTracker) == _given("tracker")


def test_every_argument_of_the_bridge_is_an_option():
    """A new argument has to be added to the table, or this fails."""
    assert _arguments(OTelBridge) == _given("bridge")


def test_every_variable_that_the_source_names_is_an_option_or_tested_elsewhere(repository):
    """A new variable has to be added to the table, or to those that another test is about."""
    sources = (repository / "stormphase").rglob("*.py")
    named = {name for source in sources for name in _VARIABLE.findall(source.read_text(encoding="utf-8"))}
    known = _given("environ") | options.ELSEWHERE.keys()
    assert set() == named - known
    assert named >= {name for name in _given("environ") if name.startswith("STORMPHASE_")}


def test_every_variable_of_a_launcher_is_an_option_or_tested_elsewhere(repository):
    """Who this rank is, a launcher says by variables, which must go together with all options."""
    modules = ("_launch_names.py", "_launchers.py", "_rank.py", "_session_id.py")
    sources = [repository / "stormphase" / name for name in modules]
    named = {name for source in sources for name in _OF_LAUNCHERS.findall(source.read_text(encoding="utf-8"))}
    assert {"MAX_SESSION_ID_CHARS"} == named - _given("environ") - options.ELSEWHERE.keys()  # which is none


def test_variables_that_are_tested_elsewhere_are_named_there(repository):
    """Some other test file has each of them, those of exporters without what all of these begin with."""
    files = [path for path in (repository / "tests").rglob("test_*.py") if path.parent.name != "story"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert [] == [name for name in options.ELSEWHERE if name.removeprefix("OTEL_EXPORTER_OTLP_") not in text]


def test_the_rows_cover_all_pairs():
    """No two choices that can stand together are left out."""
    assert len(options.all_pairs()) == options.pairs_in(options.rows())


def test_all_pairs_of_options_tell_one_story(runner):
    """With any two options together, all tellers agree with each other and with the program."""
    wrong = []
    for number, row in enumerate(options.rows()):
        found, run = runner.run(options.program_of(row, number))
        wrong += [f"row {number}: {each}" for each in found]
        assert len(run.oracle.entered) >= options.PHASES, f"row {number}: the program has not run to its end"
    assert [] == wrong


def test_disabled_everything_is_nothing(runner):
    """With STORMPHASE_DISABLED=1 the program runs as ever, and nobody tells anything."""
    row = {name: factor.choices[0] for name, factor in options.FACTORS.items()}
    program = options.program_of({**row, "end": "clean", "disabled": "1"}, 0)
    _, run = runner.run(program)
    assert run.oracle.is_over
    assert {} == {name: story.phases for name, story in run.stories.items() if story.phases}
