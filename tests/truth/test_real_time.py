"""Small jobs in real time, with nothing simulated: the culprit is named, as it is for those with a fake clock."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import threading
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("truth_loading", Path(__file__).with_name("loading.py"))
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

from truth_machine import ask_now  # noqa: E402 - importable from here on
from truth_outcomes import NAMED, WELL, said_by  # noqa: E402
from truth_real_time import CULPRIT, EVENTS, OVERDUE_S, RealJob  # noqa: E402

JOBS = [(event, marks) for event in EVENTS for marks in ("marked", "unmarked")]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Let all jobs run at one time, wait once until what hangs is overdue, and ask about each."""
    jobs = {}
    try:
        for event, marks in JOBS:
            jobs[event, marks] = RealJob(tmp_path_factory.mktemp("job"), event, marks)
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(RealJob.serve, jobs.values()))
        threading.Event().wait(OVERDUE_S)
        return {which: ask_now(job.directory, "--hang-s", "1") for which, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.end()


@pytest.mark.parametrize(("event", "marks"), JOBS)
def test_the_culprit_is_named(answers, event, marks):
    """Killed, stopped, failed, gone in order or stuck: that rank comes first, and exit code, text and JSON agree."""
    found = said_by(answers[event, marks])
    expected = (WELL, frozenset()) if event == "nothing" else (NAMED, frozenset({CULPRIT}))
    assert (*expected, ()) == (found.kind, found.head, found.complaints), answers[event, marks].text
