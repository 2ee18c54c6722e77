"""Who is to blame, in SQL: the same as in Python and in a journal, however one failure leads to another."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3

import attrs
import pytest

from stormphase.records import PhaseRecord, attribute, read_records
from stormphase.stores import SqliteStore

# Each root cause, what it reached, and how often; what a person would ask.
FAILURES = """
SELECT cause.path, count(other.scope_id) AS reached
FROM phases AS cause LEFT JOIN records AS other
    ON other.root_cause_scope_id = cause.scope_id AND other.scope_id <> cause.scope_id
    AND other.session_id = cause.session_id AND other.session_attempt = cause.session_attempt
WHERE cause.status = 'failed' AND cause.root_cause_scope_id = cause.scope_id
GROUP BY cause.session_id, cause.session_attempt, cause.scope_id ORDER BY cause.ended_ns, cause.path
"""


def handled(tracker):
    """Handle a failure: it stays where it was."""
    with tracker.enter_phase("train"), contextlib.suppress(ValueError), tracker.enter_phase("clean"):
        raise ValueError("x")


def raised_from(tracker):
    """Fail from another failure, two levels deep."""
    with contextlib.suppress(RuntimeError), tracker.enter_phase("train"), tracker.enter_phase("fit"):
        try:
            with tracker.enter_phase("load"):
                raise ValueError("first")
        except ValueError as error:
            raise RuntimeError("second") from error


def raised_while_handling(tracker):
    """Fail by itself while another failure is handled, which is no `from`."""
    with contextlib.suppress(KeyError), tracker.enter_phase("train"):
        try:
            with tracker.enter_phase("load"):
                raise ValueError("first")
        except ValueError:
            raise KeyError("second") from None


def raised_by_itself(tracker):
    """Fail by itself after another failure was handled."""
    with contextlib.suppress(KeyError), tracker.enter_phase("train"):
        with contextlib.suppress(ValueError), tracker.enter_phase("load"):
            raise ValueError("first")
        raise KeyError("second")


def in_parallel(tracker):
    """Fail in two tasks, and raise both as a group, the later one first."""

    async def branch(name, go_on):
        with tracker.enter_phase(name):
            await go_on.wait()
            raise ValueError(name)

    async def both():
        events = asyncio.Event(), asyncio.Event()
        with tracker.enter_phase("train"):
            tasks = [asyncio.create_task(branch(name, event)) for name, event in zip("ab", events, strict=True)]
            events[0].set()
            first = (await asyncio.gather(tasks[0], return_exceptions=True))[0]
            events[1].set()
            second = (await asyncio.gather(tasks[1], return_exceptions=True))[0]
            raise ExceptionGroup("both", [second, first])

    with contextlib.suppress(ExceptionGroup):
        asyncio.run(both())


@pytest.mark.parametrize(
    ("story", "failures", "causes"),
    [
        (handled, [("train / clean", 0)], {"train": None}),
        (raised_from, [("train / fit / load", 2)], {"train": "train / fit / load", "fit": "train / fit / load"}),
        (raised_while_handling, [("train / load", 0), ("train", 0)], {"train": "train"}),
        (raised_by_itself, [("train / load", 0), ("train", 0)], {"train": "train"}),
        (in_parallel, [("train / a", 1), ("train / b", 0)], {"train": "train / a", "b": "train / b"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_sql_python_and_a_journal_blame_the_same(make_tracker, tmp_path, story, failures, causes):
    """Every failure is listed, each with what it reached; whoever was not reached has NULL."""
    store = SqliteStore(tmp_path / "runs.db")
    with make_tracker(session_id="s", store=store, journal=tmp_path / "runs") as tracker:
        story(tracker)
    connection = sqlite3.connect(store.path)
    assert failures == connection.execute(FAILURES).fetchall()
    rows = dict(connection.execute("SELECT name, root_cause_path FROM phases"))
    connection.close()
    assert causes == {name: rows[name] for name in causes}
    for source in (store, tmp_path / "runs"):
        found = attribute(read_records(source))
        assert failures == [(failure.record.path_text, len(failure.reached)) for failure in found.failures]


def test_a_late_child_never_marks_the_next_attempt(make_tracker, tmp_path, step_thread):
    """A thread of the first try fails while the second one runs: it hangs under the first, and reached neither."""
    store, worker = SqliteStore(tmp_path / "runs.db"), step_thread()
    with make_tracker(session_id="s", store=store, journal=tmp_path / "runs") as tracker:
        with contextlib.suppress(OSError), tracker.enter_phase("load") as first:
            context = contextvars.copy_context()
            late = worker.do(context.run, tracker.enter_phase, "late")
            raise OSError("first")
        with tracker.retry(first):
            worker.do(context.run, lambda: late.close(error=ValueError("late")))
    connection = sqlite3.connect(store.path)
    sql = "SELECT path, attempt, status, root_cause_path, parent_scope_id FROM phases ORDER BY entered_ns"
    rows = connection.execute(sql).fetchall()
    assert [("load", 0), ("load / late", 0)] == [row[:2] for row in connection.execute(FAILURES)]
    connection.close()
    assert [
        ("load", 0, "failed", "load"),
        ("load / late", 0, "failed", "load / late"),
        ("load", 1, "succeeded", None),
    ] == [row[:4] for row in rows]
    assert first.scope_id == rows[1][4]
    for source in (store, tmp_path / "runs"):
        found = attribute(read_records(source))
        assert [("load", 0), ("load / late", 0)] == [
            (failure.record.path_text, len(failure.reached)) for failure in found.failures
        ]


def test_a_retry_of_a_record_is_its_next_attempt(make_tracker, tmp_path):
    """Who has only the record of the try before, as after a restart, retries that: attempts are counted by us."""
    store = SqliteStore(tmp_path / "runs.db")
    with make_tracker(session_id="s", store=store) as tracker:
        tracker.enter_phase("load").close()
        assert tracker.flush(60)
        for expected in (1, 2):
            *_, newest = store.query(path="load")
            with tracker.retry(newest) as again:
                pass
            assert tracker.flush(60)
            assert expected == next(store.query(scope_id=again.scope_id)).attempt
    records = list(store.query(path="load"))
    assert [0, 1, 2] == [record.attempt for record in records]
    assert [None, *(record.scope_id for record in records[:2])] == [record.retry_of_scope_id for record in records]


@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_workers_that_died_at_one_time_no_row_names_one(tmp_path, at_once):
    """Also where the second is found dead later than the first, by when the first had been named."""
    from stormphase._liveness import own_process
    from stormphase._model import PhaseStatus

    second = 1_000_000_000
    common = {"session_id": "s", "rank": 0, "scope_id": "", "path": (), "sequence": 0, "process": own_process()}

    def made(number, name, **more):
        path = ("fit",) if name == "fit" else ("fit", name)
        return PhaseRecord(
            **{**common, "scope_id": f"{number:016x}", "sequence": number, "path": path, "entered_ns": number, **more}
        )

    fit = made(
        1,
        "fit",
        status=PhaseStatus.FAILED,
        ended_ns=90 * second,
        error_type="BrokenProcessPool",
        root_cause_scope_id=f"{1:016x}",
        root_cause_path=("fit",),
    )
    workers = [
        made(number, f"work{number}", parent_scope_id=fit.scope_id, status=PhaseStatus.ACTIVE, process=process)
        for number, process in ((number, attrs.evolve(own_process(), pid=number, started=1)) for number in (2, 3))
    ]
    store = SqliteStore(tmp_path / "runs.db")
    store.begin([*workers])
    store.end([fit])
    lost = [
        attrs.evolve(each, status=PhaseStatus.LOST, ended_ns=80 * second, evidence="it is gone") for each in workers
    ]
    for some in [lost] if at_once else [[each] for each in lost]:
        store.end(some)
    found = {record.name: record.root_cause_path for record in store.query(kind="phase")}
    assert ("fit",) == found["fit"]
    (blame,) = [each for each in attribute(store.query()).failures if each.record.name == "fit"]
    assert () == blame.reached
