"""Errors name the line that entered a phase and, where that stands in a small helper, its caller's too."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import stormphase
from stormphase import PhaseProtocolError, _sites
from stormphase._sites import MAX_HELPER_LINES

HERE = __file__.rpartition("/")[2]


@pytest.fixture
def tracker(make_tracker):
    """Return a tracker that runs."""
    return make_tracker().start()


def line():
    """Return the line of the caller."""
    return sys._getframe(1).f_lineno


class Helpers:
    """What users write around a tracker."""

    def __init__(self, tracker):
        self.tracker = tracker

    def handle(self, name):
        """Give the name on."""
        return self.tracker.enter_phase(name, {"a": 1})

    def token(self, name):
        """Give the name on, and keep what ends it."""
        self.kept = self.tracker.enter(name)
        return self.kept._handle

    def callback(self, name):
        """Keep a phase of a fixed name open, as callbacks do."""
        del name
        self.kept = self.tracker.enter_phase("step")
        return self.kept

    @contextlib.contextmanager
    def region(self, name):
        """Be a context manager."""
        with self.tracker.enter_phase(name) as phase:
            yield phase

    @contextlib.contextmanager
    def library(self, name):
        """Be one of a library's, that knows no tracker."""
        with stormphase.phase(name) as phase:
            yield phase


@pytest.mark.parametrize("way", ["handle", "token", "callback"])
def test_a_helper_s_caller_is_named(tracker, way):
    """Each time it is the line of this very call, also when name and helper are known."""
    enter = getattr(Helpers(tracker), way)
    for _ in range(3):
        phase, first = enter("step"), line()
        assert phase.label.endswith(f", called at {HERE}:{first})")
        phase.close()
        phase, second = enter("step"), line()
        assert phase.label.endswith(f", called at {HERE}:{second})")
        assert phase.label.startswith(f"'step' ({HERE}:")
        phase.close()


@pytest.mark.parametrize("way", ["region", "library"])
def test_of_a_decorated_generator_the_with_is_named(tracker, way):
    """And not a line of contextlib's."""
    region = getattr(Helpers(tracker), way)
    for _ in range(2):
        with region("step") as phase:
            with_line = line() - 1
            assert phase.label.endswith(f", called at {HERE}:{with_line})")


def test_the_error_names_both_lines_of_each_phase(tracker):
    """Of the one that was closed and of what is open inside it."""
    enter = Helpers(tracker).handle
    outer, outer_line = enter("outer"), line()
    inner, inner_line = enter("inner"), line()
    with pytest.raises(PhaseProtocolError) as raised:
        outer.close()
    assert f"called at {HERE}:{outer_line})" in raised.value.phase
    assert f"called at {HERE}:{inner_line})" in raised.value.open_inside[0]
    assert raised.value.phase in str(raised.value)
    inner.close()
    outer.close()


def test_who_ends_a_phase_by_with_is_named_alone(tracker):
    """A short function with a phase of its own is no helper: it keeps the fast way, and its line says enough."""

    def forward():
        with tracker.enter_phase("forward") as phase:
            return phase.label, line() - 1

    label, own = forward()
    assert (f"'forward' ({HERE}:{own})", (label, own)) == (label, forward())
    assert "forward" in tracker.lane_set.paths.root.children


def test_a_long_function_is_no_helper(tracker):
    """Whoever reads its line knows where it is."""
    source = "def long(tracker, name):\n" + "    pass\n" * MAX_HELPER_LINES + "    return tracker.enter_phase(name)\n"
    names = {}
    exec(compile(source, "long.py", "exec"), names)  # noqa: S102 - our own text
    phase = names["long"](tracker, "step")
    assert f"'step' (long.py:{MAX_HELPER_LINES + 2})" == phase.label
    phase.close()


def test_at_module_level_there_is_no_caller(tracker):
    """The line of a script is where it was entered."""
    names = {"tracker": tracker}
    exec(compile("phase = tracker.enter_phase('step')", "script.py", "exec"), names)  # noqa: S102 - our own text
    assert "'step' (script.py:1)" == names["phase"].label
    names["phase"].close()


def test_names_of_helpers_count_as_one_path_with_those_of_others(tracker):
    """However it was first entered, one path is one node, also under another spelling."""
    enter = Helpers(tracker).handle
    enter("step").close()
    tracker.enter_phase("step").close()
    enter(" step ").close()
    root = tracker.lane_set.paths.root
    assert (["step", " step "], {}) == (list(root.helped), root.children)
    assert 1 == len(set(root.below.values()))


class Big:
    """Stands for a tensor."""


@pytest.mark.parametrize("name", ["given", "step"])
def test_no_value_of_the_user_s_is_kept(tracker, name):
    """What is noted is code: neither the helper's nor the caller's locals live longer, not even while they run."""
    found = []

    def enter(name, box):  # In a box, since CPython 3.10 keeps what a function is given until that returns.
        big = box.pop()
        found.append(weakref.ref(big))
        phase = tracker.enter_phase(name)
        del big
        found.append(found[0]() is None)
        return phase

    def caller():
        phase = enter(name, [Big()])
        found.append(found[0]() is None)
        return phase

    caller().close()
    assert [True, True] == found[1:]


PHASE_NAME = "of a constant"


class Names:
    """Where some keep the names of their phases."""

    LOAD = "of a class"


def test_a_named_constant_is_no_helper_s(tracker):
    """Names of phases often stand at the top of a module; who ends them by `with` keeps the fast way."""

    def forward(batch):
        del batch
        found = []
        for name in (PHASE_NAME, Names.LOAD, "a", "b"):
            with tracker.enter_phase(name) as phase:
                found.append("called at" in phase.label)
        for number in range(2):
            with tracker.enter_phase(f"epoch {number}") as phase:
                found.append("called at" in phase.label)
        return found

    assert [False] * 6 == forward(1)
    assert {PHASE_NAME, Names.LOAD, "a", "b", "epoch 0", "epoch 1"} == set(tracker.lane_set.paths.root.children)


def test_a_name_made_with_an_argument_is_a_helper_s(tracker):
    """A prefix is what many helpers add."""

    def timed(what, *, group="train"):
        with tracker.enter_phase(f"{group}.{what}") as phase:
            return phase.label

    label, called = timed("load"), line()
    assert label.endswith(f"called at {HERE}:{called})")


def test_a_decorator_s_phase_has_the_line_that_called_what_is_decorated(tracker):
    """Its name comes from the function around it, whatever arguments it passes on."""

    def timed(name):
        def decorate(function):
            def timed_function(*arguments):
                with tracker.enter_phase(name) as phase:
                    return function(phase, *arguments)

            return timed_function

        return decorate

    @timed("load")
    def label_of(phase):
        return phase.label

    label, called = label_of(), line()
    assert label.endswith(f"called at {HERE}:{called})")


@pytest.mark.parametrize("way", ["thread", "pool", "task"])
def test_a_line_of_the_interpreter_s_own_is_no_caller(tracker, way):
    """A helper that is all the work of a thread or a task was called by nobody whom the user would look for."""
    labels = []

    def work(name):
        with tracker.enter_phase(name) as phase:
            labels.append(phase.label)

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_soon(work, "load")
        await asyncio.sleep(0)

    if way == "thread":
        thread = threading.Thread(target=work, args=["load"])
        thread.start()
        thread.join()
    elif way == "pool":
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work, "load").result()
    else:
        asyncio.run(main())
    assert (1, False) == (len(labels), "called at" in labels[0])


def test_a_script_s_line_has_no_caller_though_a_helper_entered_that_name_first(tracker):
    """What runs a module's code, or a notebook's cell, is not the user's."""
    Helpers(tracker).handle("step").close()
    names = {"tracker": tracker}
    exec(compile("phase = tracker.enter_phase('step')", "script.py", "exec"), names)  # noqa: S102 - our own text
    assert "'step' (script.py:1)" == names["phase"].label
    names["phase"].close()


CELLS = """
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in (
    "import stormphase\\n"
    "tracker = stormphase.PhaseTracker('nb', session_id='s', bridge=None).start()",
    "def region(name):\\n"
    "    return tracker.enter_phase(name)",
    "phase = region('load')",
    "print(phase.label)",
    "tracker.stop()",
):
    assert shell.run_cell(cell, store_history=True).success, cell
"""


def test_a_place_in_a_notebook_is_named_by_its_cell(run_python):
    """As IPython's own tracebacks name it: a file's name would be a number that nobody has seen."""
    assert "'load' (In[2]:2, called at In[3]:1)" == run_python(CELLS).stdout.strip()


def test_where_ipython_runs_nothing_a_place_is_a_file(tracker, monkeypatch):
    """Whatever else a program has put at that name."""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    phase, own = tracker.enter_phase("step"), line()
    assert f"'step' ({HERE}:{own})" == phase.label
    phase.close()


@pytest.mark.parametrize("leaves", [[bytes([each]) for each in range(256)], [], None], ids=["all", "none", "an error"])
def test_where_instructions_are_laid_out_otherwise_no_caller_is_named(tracker, monkeypatch, leaves):
    """What is read out of them is tried on the interpreter that runs: it is silent then, and never wrong."""

    def helper():
        return tracker.enter_phase("laid out otherwise")

    monkeypatch.setattr(_sites, "_LEAVES", leaves)
    _sites._is_layout_known.cache_clear()
    try:
        phase = helper()
    finally:
        _sites._is_layout_known.cache_clear()
    assert "called at" not in phase.label
    phase.close()


def test_the_layout_of_this_interpreter_is_known():
    """Each version that is supported is one of those."""
    assert _sites._is_layout_known()
