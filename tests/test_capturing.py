"""A tracker that captures: from its start or its first phase that asks for it, until it stops, and into its store."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
from types import ModuleType

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stormphase import ConfigurationError
from stormphase.capture import CaptureOptions, _claim
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore

# ruff: noqa: PT012, T201 - prints are what it is about


def outputs(store):
    """Return what a store has of each phase, by name."""
    return {record.name: [(line.stream, line.text) for line in record.output] for record in store.query(kind="phase")}


def test_a_store_has_each_phase_with_its_output(make_tracker):
    """What was printed and logged, and the traceback, stand in the record of the phase that said it."""
    store = MemoryStore()
    with make_tracker(capture=True, store=store) as tracker:
        with tracker.enter_phase("load"):
            print("loading")
            with contextlib.suppress(ValueError), tracker.enter_phase("parse"):
                logging.getLogger("parser").info("parsing")
                raise ValueError("password=hunter2")
        with tracker.enter_phase("silent"):
            pass
    found = outputs(store)
    assert [("stdout", "loading")] == found["load"]
    assert ("log", "INFO parser: parsing") == found["parse"][0]
    assert ("traceback", "ValueError: password=[redacted]") == found["parse"][-1]
    assert [] == found["silent"]
    assert ModuleType is type(sys)


def test_phases_in_opentelemetrys_context_are_found(make_tracker):
    """With the bridge a phase is in OpenTelemetry's context; a span of the program's own inside it hides nothing."""
    provider = TracerProvider()
    with make_tracker(capture=True, bridge=OTelBridge(provider)) as tracker:
        with tracker.enter_phase("outer") as outer:
            print("before")
            with provider.get_tracer("mine").start_as_current_span("own"):
                print("within")
                with tracker.enter_phase("inner") as inner:
                    print("inner")
            asyncio.run(asyncio.to_thread(print, "thread"))
        assert ["before", "within", "thread"] == [
            line.text for line in tracker.capture.take(outer).lines if line.stream == "stdout"
        ]
        assert "inner\n" == tracker.capture.take(inner).text


def test_without_capture_nothing_is_hooked(make_tracker):
    """A tracker that is not asked to capture leaves everything alone, and says nothing of it."""
    with make_tracker() as tracker:
        assert ModuleType is type(sys)
        assert tracker.capture is None
        assert "capture" not in tracker.stats()


def test_a_phase_may_ask_for_it(make_tracker):
    """Block, function, generator and coroutine alike: the first one installs it, the stop removes it."""
    store = MemoryStore()
    tracker = make_tracker(store=store).start()
    with tracker.phase("off"):
        print("off")
    with tracker.phase("block", capture=True), tracker.phase("inside"):
        print("inside")

    @tracker.phase("function", capture=True)
    def function():
        print("function")

    @tracker.phase("generator", capture=True)
    def generator():
        print("one")
        yield 1
        print("two")

    @tracker.phase("quiet", capture=False)
    def quiet():
        print("quiet")

    function()
    for _ in generator():
        print("between")
    with tracker.phase("around", capture=True):
        quiet()
    assert WatchedName == type(sys).__name__
    tracker.stop()
    assert ModuleType is type(sys)
    found = outputs(store)
    assert {
        "off": [],
        "block": [],
        "inside": [("stdout", "inside")],
        "function": [("stdout", "function")],
        "generator": [("stdout", "one"), ("stdout", "two")],
        "around": [],
        "quiet": [],
    } == found


WatchedName = "WatchedSys"


def test_a_phase_may_opt_out(make_tracker):
    """With capture on for all, a phase with `capture=False` keeps nothing, nor do those inside it."""
    store = MemoryStore()
    with make_tracker(capture=CaptureOptions(inclusive=True), store=store) as tracker, tracker.enter_phase("outer"):
        print("outer")
        with tracker.phase("private", capture=False), tracker.enter_phase("inside"):
            print("private")
    assert {"outer": [("stdout", "outer")], "private": [], "inside": []} == outputs(store)


@pytest.mark.parametrize(
    "capture", ["stdout", 1.5, object(), {"mode": "fd"}], ids=["unknown", "number", "object", "mapping"]
)
def test_a_wrong_wish_is_an_error_at_construction(make_tracker, capture):
    """What cannot be meant is said before anything starts, with what to write."""
    with pytest.raises(ConfigurationError, match="capture=True") as caught:
        make_tracker(capture=capture)
    assert "capture" == caught.value.setting


@pytest.mark.parametrize(
    "options", [{"mode": "x"}, {"max_bytes": 1}, {"max_bytes_per_s": True}, {"log_level": "x"}, {"redact": "("}]
)
def test_wrong_options_are_errors(options):
    """Each option is checked when it is given."""
    with pytest.raises(ConfigurationError):
        CaptureOptions(**options)


def test_a_wrong_wish_of_a_phase_is_an_error(make_tracker):
    """A phase takes True, False or "fd"; the rest is the tracker's to say."""
    with make_tracker() as tracker, pytest.raises(ConfigurationError, match="PhaseTracker"):
        tracker.phase("x", capture=CaptureOptions())


def test_a_phase_that_cannot_have_the_descriptors_is_refused(make_tracker, monkeypatch):
    """It raises, or is counted where misuse is only recorded, and then captures what goes through Python."""
    monkeypatch.setattr(_claim, "_claimed", {})
    _claim.claim("session 'other'")
    with make_tracker() as tracker:
        with pytest.raises(ConfigurationError, match="for session 'other'"), tracker.phase("refused", capture="fd"):
            pytest.fail("not reached")
        with tracker.phase("next", capture=True) as phase:
            print("captured")
        assert "captured\n" == tracker.capture.take(phase).text
    with make_tracker(on_misuse="record") as tracker:
        with tracker.phase("recorded", capture="fd") as phase:
            print("all the same")
        assert "all the same\n" == tracker.capture.take(phase).text
        assert 1 == tracker.stats()["misuse"]["capture_refused"]


def test_a_tracker_that_cannot_have_the_descriptors_does_not_start(make_tracker, monkeypatch):
    """A start that fails has hooked into nothing, and once it can it succeeds."""
    monkeypatch.setattr(_claim, "_claimed", {})
    _claim.claim("session 'other'")
    tracker = make_tracker(capture="fd")
    with pytest.raises(ConfigurationError, match="Stop that session first"):
        tracker.start()
    assert ModuleType is type(sys)


def test_stats_count_what_was_cut(make_tracker):
    """`tracker.stats()` says how much was left out."""
    with make_tracker(capture=CaptureOptions(max_bytes=256)) as tracker:
        with tracker.enter_phase("phase") as phase:
            print("x" * 10_000)
        tracker.capture.take(phase)
        assert tracker.stats()["capture"]["cut_bytes"] > 9_000


def test_a_disabled_tracker_captures_nothing(make_tracker, monkeypatch):
    """With STORMPHASE_DISABLED nothing is hooked, whatever was asked for."""
    monkeypatch.setenv("STORMPHASE_DISABLED", "1")
    with make_tracker(capture=True) as tracker, tracker.phase("x", capture=True):
        print("x")
        assert ModuleType is type(sys)


def test_a_program_that_fails_leaves_nothing_behind(make_tracker):
    """Also when the tracker's block is left by an exception, streams are as they were."""
    before = sys.stdout
    with pytest.raises(KeyboardInterrupt), make_tracker(capture=True) as tracker, tracker.enter_phase("x"):
        sys.stdout = io.StringIO()
        raise KeyboardInterrupt
    assert {} == vars(sys.stdout)
    sys.stdout = before
    assert ModuleType is type(sys)


def test_capture_is_loaded_only_where_it_is_asked_for(run_python):
    """A program that captures nothing does not pay for its import."""
    child = run_python(
        "import sys, stormphase\n"
        "with stormphase.PhaseTracker(bridge=None, session_id='s'): pass\n"
        "print('stormphase.capture' in sys.modules)"
    )
    assert "False\n" == child.stdout
