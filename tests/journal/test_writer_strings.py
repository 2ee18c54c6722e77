"""The journal's strings: whatever thread or signal handler sees a name first, each number means one string."""

from __future__ import annotations

import threading

import pytest
from journal_writing import Writing

from stormphase.journal import _format


@pytest.fixture
def writing(tmp_path):
    """Return lanes that are written to a journal by hand."""
    made = Writing(tmp_path / "rank-0.journal", 4 * 1024 * 1024)
    yield made
    made.close()


def paths_told(writing):
    """Enter and exit a phase of every known path, and return those that the journal tells of, and those that were."""
    nodes = list(writing.lanes.paths.root.children.values())
    handles = [writing.lanes.enter_phase(node.name) for node in nodes if not writing.lanes.lane_of_caller().phases()]
    for handle in handles:
        handle.close()
    entered = []
    for node in nodes:
        with writing.lanes.enter_phase(node.name) as phase:
            entered.append((phase._sequence, phase.path))
    told = {phase.sequence: phase.path for phase in writing.read().ended}
    return [told[sequence] for sequence, _ in entered], [path for _, path in entered]


def interrupt_at(monkeypatch, writing, method, number, what):
    """Call `what` once, right before the `number`-th call of a method of the file or the segments."""
    owner = writing.segments if method == "take" else writing.file
    original = getattr(owner, method)
    left = [number]

    def strike(*arguments, **named):
        left[0] -= 1
        if left[0] == -1:
            what()
        return original(*arguments, **named)

    if method == "take":
        monkeypatch.setattr(type(owner), method, lambda self, *a, **n: strike(*a, **n))
    else:
        monkeypatch.setattr(owner, method, strike)
    return left


@pytest.mark.parametrize(
    ("method", "number"),
    [("take", 0), *((method, number) for method in ("put_bytes", "put_word") for number in range(6))],
)
def test_a_handler_that_sees_names_first_disturbs_no_number(writing, monkeypatch, method, number):
    """In the middle of taking a segment or of storing an entry: all phases have their own names."""
    for filler in range(55):  # so that the next names need another segment
        writing.lanes.enter_phase(f"{filler:0250d}").close()

    def see_names():
        for new in range(70):
            writing.lanes.enter_phase(f"handler {new:0200d}").close()

    left = interrupt_at(monkeypatch, writing, method, number, see_names)
    for new in range(40):
        writing.lanes.enter_phase(f"new {new:0200d}").close()
    monkeypatch.undo()
    assert left[0] < 0
    told, entered = paths_told(writing)
    assert entered == told
    assert () == writing.read().damage


@pytest.mark.parametrize(("method", "number"), [("take", 0), ("put_bytes", 1), ("put_word", 1)])
def test_two_threads_that_see_names_first_agree(writing, monkeypatch, method, number):
    """The second thread comes in between, wherever the first one is."""
    seen = threading.Event()

    def see_names():
        seen.set()
        writing.lanes.enter_phase("other").close()

    def see_thread_name():
        threads.append(threading.Thread(target=see_names, name="x" * 900))
        threads[0].start()
        seen.wait(10)

    threads = []
    for filler in range(40):
        writing.lanes.enter_phase(f"{filler:0250d}").close()
    interrupt_at(monkeypatch, writing, method, number, see_thread_name)
    for new in range(80):
        writing.lanes.enter_phase(f"new {new:0200d}").close()
    monkeypatch.undo()
    for thread in threads:
        thread.join()
    told, entered = paths_told(writing)
    assert entered == told
    assert "x" * 900 in {phase.thread_name for phase in writing.read().ended}


def test_a_name_that_a_handler_broke_off_costs_that_name_alone(writing, monkeypatch):
    """What was numbered and not stored is stored with the next one."""

    def raise_now():
        raise KeyboardInterrupt

    writing.lanes.enter_phase("first").close()
    interrupt_at(monkeypatch, writing, "put_bytes", 0, raise_now)
    with pytest.raises(KeyboardInterrupt):
        writing.lanes.enter_phase("broken")
    monkeypatch.undo()
    writing.lanes.enter_phase("second").close()
    told, entered = paths_told(writing)
    assert entered == told
    assert {("first",), ("second",)} <= set(told)


def test_a_table_that_is_full_numbers_no_more(tmp_path, monkeypatch):
    """Then phases and threads go on without numbers."""
    monkeypatch.setattr(_format, "MAX_STRINGS", 3)
    writing = Writing(tmp_path / "rank-0.journal")
    handles = [writing.lanes.enter_phase(name) for name in ("a", "b", "c", "d")]
    assert ("a", "b", "c", "d") == writing.read().open[-1].path
    for handle in reversed(handles):
        handle.close()
    writing.close()


def test_a_long_name_of_a_thread_is_cut_between_characters(writing, step_thread):
    """Bounded to 1,024 bytes, and still text."""
    thread = step_thread("\u20ac" * 1_000)
    handle = thread.do(writing.lanes.enter_phase, "load")
    (phase,) = writing.read().open
    assert "\u20ac" * 341 == phase.thread_name[:341]
    thread.do(handle.close)
