"""`phase(...)` takes what `enter_phase` takes, and what is wrong is refused where it is written."""

from __future__ import annotations

import asyncio
import inspect

import pytest

import stormphase
from stormphase import ConfigurationError, PhaseNameError, PhaseTracker, record_of

ARGUMENTS = (({"epoch": 1}, True, 60), {}), ((), {"attributes": {"epoch": 1}, "sync": True, "timeout_s": 60})
WRONG_NAMES = ("", " ", "\t\n", "\N{NO-BREAK SPACE}")


@pytest.fixture
def found():
    """Return a list for what a sink hears."""
    return []


@pytest.fixture
def tracker(make_tracker, found):
    """Return a tracker that runs, and is ambient."""
    return make_tracker(sinks=[found.append]).start()


def ended(tracker, found):
    """Stop, and return the records of what has ended."""
    tracker.stop()
    return [record_of(exit=boundary) for boundary in found if boundary.event_type == "phase_exit"]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=["by position", "by name"])
@pytest.mark.parametrize("source", ["tracker", "ambient"])
@pytest.mark.parametrize("way", ["with", "async with", "def", "async def", "generator"])
def test_a_late_phase_takes_what_enter_phase_takes(tracker, found, way, source, arguments):
    """Attributes, sync and timeout, by position and by name, for a block and for every kind of function."""
    positional, named = arguments
    late = (tracker.phase if source == "tracker" else stormphase.phase)("load", *positional, **named)

    async def block():
        async with late as phase:
            return phase._extra.timeout_ns

    async def coroutine():
        return late

    def generator():
        yield late

    if way == "with":
        with late as phase:
            assert 60 * 10**9 == phase._extra.timeout_ns
    elif way == "async with":
        assert 60 * 10**9 == asyncio.run(block())
    elif way == "async def":
        asyncio.run(late(coroutine)())
    elif way == "generator":
        list(late(generator)())
    else:
        late(lambda: None)()
    (record,) = ended(tracker, found)
    assert (("load",), {"epoch": 1}, True) == (record.path, record.attributes, record.is_sync)


def test_a_decorated_function_may_be_open_too_long(tracker, found, clock):
    """The limit of the decorator is that of each call's phase."""
    limits = []

    @tracker.phase("load", timeout_s=0.5)
    def load():
        (phase,) = tracker.lane_set.open_phases()
        limits.append(phase._extra.timeout_ns)

    load()
    assert [500_000_000] == limits


@pytest.mark.parametrize("call", ["enter_phase", "enter", "phase", "ambient", "disabled"])
def test_metadata_is_refused_with_a_word_on_attributes(tracker, monkeypatch, call):
    """Only a recorder has metadata; the error says what to write, and nothing is entered."""
    calls = {"ambient": stormphase.phase, "disabled": None}
    if call == "disabled":
        monkeypatch.setenv("STORMPHASE_DISABLED", "1")
        off = PhaseTracker(bridge=None).start()
        calls["disabled"] = off.enter_phase
    function = calls.get(call) or getattr(tracker, call)
    with pytest.raises(TypeError, match=r"takes no metadata: .* Write attributes=\{\.\.\.\}"):
        function("load", metadata={"epoch": 1})
    assert [] == list(tracker.lane_set.open_phases())


@pytest.mark.parametrize("name", WRONG_NAMES, ids=ascii)
@pytest.mark.parametrize("source", ["not started", "running", "ambient", "nowhere"])
def test_a_blank_name_is_refused_where_it_is_written(make_tracker, source, name):
    """Not at the first call, which may be hours later."""
    tracker = make_tracker()
    phase = stormphase.phase if source in ("ambient", "nowhere") else tracker.phase
    if source in ("running", "ambient"):
        tracker.start()
    with pytest.raises(PhaseNameError, match="must not be blank"):
        phase(name)


@pytest.mark.parametrize("name", [3, b"load", ("train", "load"), 1.5], ids=repr)
def test_a_name_that_is_no_string_is_refused_where_it_is_written(tracker, name):
    """With an option or without."""
    with pytest.raises(TypeError, match="decorates functions"):
        tracker.phase(name)
    with pytest.raises(ConfigurationError, match="must be a string"):
        tracker.phase(name, {"epoch": 1})


def test_a_tracker_that_records_counts_a_blank_name(make_tracker):
    """It never raises into training, neither where it is written nor at enter."""
    with make_tracker(on_misuse="record") as tracker:
        with tracker.phase(""), stormphase.phase(" "):
            pass
        assert 2 == tracker.stats()["misuse"]["bad_name"]


@pytest.mark.parametrize("timeout_s", [0, -1, True, "60", float("nan"), 1e10], ids=repr)
def test_a_timeout_that_is_none_is_refused_where_it_is_written(tracker, timeout_s):
    """The same numbers as at enter."""
    with pytest.raises(ConfigurationError, match="timeout_s must be a number of seconds above 0"):
        tracker.phase("load", timeout_s=timeout_s)


def test_every_argument_of_enter_phase_is_one_of_phase():
    """None is forgotten, and their order is the same."""
    wanted = [name for name in inspect.signature(PhaseTracker.enter).parameters if name not in ("self", "metadata")]
    found = list(inspect.signature(PhaseTracker.phase).parameters)
    assert wanted == found[1 : len(wanted) + 1]
