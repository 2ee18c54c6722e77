"""What only one teller has, follows from what all know; a figure that is wrong is seen."""

from __future__ import annotations

import copy

import pytest
import story_figures as figures
import story_options as options
import story_programs as programs


def _run(runner, **choices):
    row = {name: factor.choices[0] for name, factor in options.FACTORS.items()}
    found, run = runner.run(options.program_of({**row, **choices}, 0))
    assert [] == found
    return run


@pytest.fixture(scope="module")
def clean(runner):
    """Return a run with a summary that ended in order, with captured output."""
    return _run(runner, end="clean", summary=True, capture=True)


@pytest.fixture(scope="module")
def killed(runner):
    """Return a run that was killed."""
    return _run(runner, end="kill")


def _sees(run, check, change):
    """Return whether a check finds nothing in a run, and something once that has been changed."""
    run = copy.deepcopy(run)
    run.found = []
    check(run)
    assert [] == run.found
    change(run)
    check(run)
    return bool(run.found)


@pytest.mark.parametrize(
    ("field", "other"), [("entered_ns", 0), ("self_ns", 10**12), ("paused_ns", 10**12), ("status", "abandoned")]
)
def test_a_wrong_cell_of_the_summary_is_seen(clean, field, other):
    """Total, own time, quantiles, pauses and how phases ended."""

    def change(run):
        next(each for each in run.sink.exits.values() if each["path"][-1] == "load")[field] = other

    assert _sees(clean, figures.summary_adds_up, change)


@pytest.mark.parametrize("figure", ["count", "median_ns", "p99_ns", "max_ns"])
def test_a_wrong_figure_of_what_is_usual_is_seen(killed, figure):
    """To the nanosecond."""

    def change(run):
        (rank,) = run.postmortem["ranks"]
        next(phase["usual"] for phase in rank["open"] if phase["usual"])[figure] += 1

    assert _sees(killed, figures.usual_is_what_records_say, change)


@pytest.mark.parametrize(("look", "other"), [("name", "other"), ("is_error", True), ("checked", [{"c": 5}])])
def test_a_span_that_looks_wrong_is_seen(clean, look, other):
    """Its name, its code, and the events that the program gave it."""

    def change(run):
        scope = next(scope for scope, facts in run.spans.phases.items() if facts["path"][-1] == "read")
        moved = run.names[scope] in run.oracle.moved
        assert not moved
        run.spans.looks[scope][look] = other

    assert _sees(clean, figures.spans_look_right, change)


def test_wrong_times_of_a_sessions_span_are_seen(clean):
    """They are those of its record."""

    def change(run):
        span = _session_span(run)
        span["endTimeUnixNano"] = str(int(span["endTimeUnixNano"]) + 1)

    assert _sees(clean, figures.owners_are_spans, change)


def test_a_wrong_code_of_a_sessions_span_is_seen(clean):
    """An error is one that failed, or was lost."""

    def change(run):
        span = _session_span(run)
        is_error = span.get("status", {}).get("code") == 2
        span["status"] = {"code": 0 if is_error else 2}

    assert _sees(clean, figures.owners_are_spans, change)


def _session_span(run):
    return run.spans.owners["span", next(scope for kind, scope in run.journal.owners if kind == "session")]


def test_output_that_a_store_lost_is_seen(clean):
    """What a phase printed stands in its record."""

    def change(run):
        run.store.output = dict.fromkeys(run.store.output, ())

    assert _sees(clean, figures.output_is_kept, change)


def test_another_threads_name_for_a_lost_phase_is_seen(killed):
    """The program wrote down in which thread it entered it."""

    def change(run):
        keys = run.oracle.entered.keys() - run.oracle.moved
        known = [run.journal.phases[run.keys[key]] for key in sorted(keys)]
        next(each for each in known if each["status"] == "lost")["thread_name"] = "another"

    assert _sees(killed, figures.threads_are_as_they_were, change)


def test_a_wrong_lane_of_an_open_phase_is_seen(killed):
    """A phase stands on its parent's lane, if no task or thread begins with it."""

    def change(run):
        is_open = {phase["scope_id"]: phase for rank in run.postmortem["ranks"] for phase in rank["open"]}
        scope = next(scope for scope in is_open if run.journal.phases[scope]["parent"] in is_open)
        phase, parent = is_open[scope], is_open[run.journal.phases[scope]["parent"]]
        is_same = phase["lane"] == parent["lane"]
        phase["lane"] = 1_000 if is_same else parent["lane"]

    assert _sees(killed, figures.lanes_are_stacks, change)


@pytest.mark.parametrize("fact", ["rank", "world_size"])
def test_another_rank_or_world_size_in_a_recovered_span_is_seen(killed, fact):
    """The rank's record has them."""

    def change(run):
        next(said for said in run.resent.launches.values() if fact in said)[fact] = 77

    assert _sees(killed, figures.ranks_are_whole, change)


def test_what_waits_in_a_function_beneath_a_loop_lets_nothing_else_run(runner):
    """A generator's body in a task sleeps, and moves phases to threads, without breaking off."""
    inside = [
        {"op": "sleep", "n": -1, "ms": 1},
        options._op("move", name="upload", attributes={}, **{"in": [], "there": []}),
    ]
    batches = options._op("generator", name="batches", items=2, stop="exhausted", **{"in": inside, "between": []})
    row = {name: factor.choices[0] for name, factor in options.FACTORS.items()}
    program = options.program_of({**row, "end": "clean"}, 0)
    body = programs.numbered([options._op("loop", backend="trio", **{"in": [batches]})])
    _, run = runner.run({**program, "body": body})
    assert {"succeeded"} == {line["status"] for line in run.oracle.ended.values()}
