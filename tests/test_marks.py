"""The user's exception is as the user made it: what is remembered of one is not seen, and keeps nothing alive."""

# ruff: noqa: N818, SIM117 - exceptions are named for what is odd about them, and fail in nested blocks

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import threading
import traceback
import weakref

import attrs
import pytest

import stormphase
from stormphase import _marks
from stormphase.stores import MemoryStore


class Plain(Exception):
    """As most are."""


@attrs.define(eq=True)
class Compared(Exception):
    """Equal by its fields, and so without a hash."""

    code: int


@attrs.frozen
class Frozen(Exception):
    """Refuses to be changed."""

    code: int


class Unequal(Exception):
    """Can neither be compared nor hashed."""

    def __eq__(self, other):
        raise LookupError("compared")

    def __hash__(self):
        raise LookupError("hashed")


class DictLess(Exception):
    """Hides its attributes."""

    @property
    def __dict__(self):
        raise LookupError("looked at")


class Slotted(Exception):
    """Cannot be weakly referenced."""

    __slots__ = ("code",)


class Reduced(Exception):
    """Is pickled in a way of its own."""

    def __init__(self, first, second):
        super().__init__(f"{first}-{second}")
        self.parts = (first, second)

    def __reduce__(self):
        return Reduced, self.parts


class Stateless(Exception):
    """Is pickled without a state, and so breaks where it is given one."""

    def __setstate__(self, state):
        raise LookupError(state)


class StatelessSlots(Exception):
    """The same, and cannot be weakly referenced."""

    __slots__ = ("code",)

    def __setstate__(self, state):
        raise LookupError(state)


WITHOUT_A_STATE = {
    "plain": lambda: Plain("x", 1),
    "unequal": lambda: Unequal("x"),
    "stateless": lambda: Stateless("x"),
    "stateless slots": lambda: StatelessSlots("x"),
    "of the standard library": lambda: subprocess.TimeoutExpired("x", 1),
}
REFERABLE = {
    "plain": lambda: Plain("x", 1),
    "compared": lambda: Compared(3),
    "frozen": lambda: Frozen(3),
    "unequal": lambda: Unequal("x"),
    "dict-less": lambda: DictLess("x"),
    "reduced": lambda: Reduced("a", "b"),
    "group": lambda: ExceptionGroup("g", [ValueError("x")]),
}
BUILTIN = {
    "ValueError": lambda: ValueError("x"),
    "OSError": lambda: OSError(2, "x", "file"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "StopIteration": lambda: StopIteration(3),
    "MemoryError": MemoryError,
    "slotted": lambda: Slotted("x"),
}
BUILTIN["group"] = REFERABLE.pop("group")


def crossed(error: BaseException) -> BaseException:
    """Return the exception after it has left two phases and been given to the span, the session and the logger."""
    with contextlib.suppress(BaseException), stormphase.PhaseTracker("x", bridge=None, store=MemoryStore()) as tracker:
        with tracker.enter_phase("train"):
            tracker.enter("epoch")
            with tracker.enter_phase("step"):
                raise error
    return error


def looks(error: BaseException) -> tuple[object, ...]:
    """Return what its user sees of an exception."""
    attributes = {key: value for key, value in _marks.attributes_of(error).items() if key != "__stormphase__"}
    notes = getattr(error, "__notes__", None)
    return repr(error.args), repr(attributes), notes, error.__cause__, error.__context__, error.__suppress_context__


@pytest.mark.parametrize("make", [*REFERABLE.values(), *BUILTIN.values()], ids=[*REFERABLE, *BUILTIN])
def test_an_exception_is_the_users_own_after_it_left_phases(make):
    """Same arguments, attributes, notes and links."""
    assert looks(crossed(make())) == looks(make())


@pytest.mark.parametrize("make", REFERABLE.values(), ids=REFERABLE)
def test_nothing_is_put_on_what_can_be_weakly_referenced(make):
    """Not even an attribute."""
    assert "__stormphase__" not in _marks.attributes_of(crossed(make()))


@pytest.mark.parametrize("make", WITHOUT_A_STATE.values(), ids=WITHOUT_A_STATE)
def test_what_was_made_without_a_state_has_none_after(make):
    """Its pickle is the same, byte for byte, and so is what a `__setstate__` is given: nothing."""
    assert pickle.dumps(make()) == pickle.dumps(crossed(make()))
    assert type(make()) is type(pickle.loads(pickle.dumps(crossed(make()))))  # noqa: S301 - its own


@pytest.mark.parametrize("make", BUILTIN.values(), ids=BUILTIN)
def test_one_key_is_put_on_the_rest(make):
    """And it stays the only one, whatever the exception goes through."""
    assert set(_marks.attributes_of(crossed(make()))) - set(_marks.attributes_of(make())) <= {"__stormphase__"}


@pytest.mark.parametrize("way", [pickle.dumps, lambda error: pickle.dumps(copy.deepcopy(error))], ids=["", "copied"])
@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("k"), SystemExit(3)], ids=lambda error: type(error).__name__
)
def test_a_pickle_loads_where_stormphase_is_not_installed(error, way):
    """Whatever stands in it is a builtin."""
    source = """
import pickle, sys
sys.modules["stormphase"] = None  # as if it were not there
error = pickle.loads(sys.stdin.buffer.read())
print(type(error).__name__, error.args, type(error.__stormphase__).__name__)
"""
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source], input=way(crossed(error)), capture_output=True, check=False
    )
    assert f"{type(error).__name__} {error.args} tuple\n" == child.stdout.decode(), child.stderr.decode()


def test_a_printed_traceback_is_as_without_phases():
    """Line by line, but for the code of the blocks themselves."""

    def run(block) -> str:
        try:
            with block():
                raise ValueError("bad batch")
        except ValueError:
            return traceback.format_exc()

    with stormphase.PhaseTracker("x", bridge=None) as tracker:

        def phase_left_open():
            tracker.enter("left")
            return contextlib.nullcontext()

        plain = run(contextlib.nullcontext)
        with tracker.enter_phase("outer"):
            assert plain == run(lambda: tracker.enter_phase("step"))
            assert plain == run(phase_left_open)
            tracker.lane_set.close("the test says so")


@pytest.mark.parametrize("make", [*REFERABLE.values(), *BUILTIN.values()], ids=[*REFERABLE, *BUILTIN])
def test_what_an_exception_is_remembered_by_ends_with_it(make):
    """The table holds nothing, and is empty again."""
    gc.collect()
    known = len(_marks._table)
    error = crossed(make())
    watched = None
    with contextlib.suppress(TypeError):
        watched = weakref.ref(error)
    del error
    gc.collect()
    assert known == len(_marks._table)
    assert watched is None or watched() is None


def test_many_threads_mark_one_exception():
    """Whoever is last is right, and nothing is left behind."""
    gc.collect()
    known = len(_marks._table)
    error = Plain("shared")
    threads = [threading.Thread(target=crossed, args=(error,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (True, {}) == (_marks.marks_of(error).origins != (), error.__dict__)
    del error, threads, thread
    gc.collect()
    assert known == len(_marks._table)


def test_marks_are_of_one_object_only():
    """An equal one, a shallow copy and one that was built from the same pickle have none."""
    for error in (crossed(Compared(3)), crossed(ValueError("x"))):
        twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        found = [_marks.marks_of(other) for other in (copy.copy(error), copy.deepcopy(error), twin)]
        assert ([None] * 3, True) == (found, _marks.marks_of(error) is not None)


@pytest.mark.parametrize(
    "forged",
    ["I arose elsewhere", (), (1, 2), ("a", ("b",), "c", ("s", 0, 0), 1, 2), ("a", ("b",), (3,), ("s", 0, 0), 1, 2), 7],
    ids=str,
)
def test_what_else_stands_under_the_key_is_ignored(forged):
    """It may come from anywhere, and is no reason to fail."""
    store = MemoryStore()
    error = Plain("x")
    error.__stormphase__ = forged
    with pytest.raises(Plain), stormphase.PhaseTracker("x", bridge=None, store=store) as tracker:
        with tracker.enter_phase("step"):
            raise error
    (step,) = store.query(kind="phase")
    assert (step.path, forged) == (step.root_cause_path, error.__stormphase__)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    """Whose state is its fields, by their order."""

    code: int


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_class_that_has_its_own_way_to_be_copied_gets_no_key(way):
    """It would take the key for one of its fields."""
    error = crossed(FrozenSlots(3))
    assert (3, {}) == (way(error).code, _marks.attributes_of(error))
