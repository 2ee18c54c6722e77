"""What a phase says of the exception that ended it, and what it never does to that exception."""

# ruff: noqa: N818, PT012, SIM117 - what fails in nested blocks, and how it is named, is what these tests are about

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref

import attrs
import pytest

from stormphase import _errors
from stormphase._errors import (
    FULL,
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    MAX_TRACEBACK_FRAMES,
    NOT_A_FAILURE,
    REFERENCE,
    describe,
    format_traceback,
    text_of,
    type_name,
)
from stormphase._model import PhaseStatus


class Panic(BaseException):
    """As libraries written in Rust raise it: no Exception, and not to be mistaken for a wish to stop."""


class Panicking(Exception):
    """Its text panics."""

    def __str__(self):
        raise Panic("in __str__")


class OutOfMemoryError(RuntimeError):
    """A failure of the user's own."""


class Unprintable(Exception):
    """Its text cannot be had."""

    def __str__(self):
        raise OSError("no text")

    __repr__ = __str__


class Hostile(Exception):
    """Raises from whatever attribute is asked for, but for those without which nothing could be raised."""

    def __getattribute__(self, name):
        raise LookupError(name)

    def __setattr__(self, name, value):
        raise LookupError(name)


@attrs.frozen
class Frozen(Exception):
    """Refuses to be changed."""

    code: int


class Slotted(Exception):
    """Has slots, if none."""

    __slots__ = ()


class SilentError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail(error: BaseException) -> None:
    """Raise."""
    raise error


def errors_of(phases):
    """Return what each phase says of its error, by name."""
    return {phase.name: phase._extra.error if phase._extra else None for phase in phases}


# --- full once, by reference on the way up ----------------------------------------------------------------------------


def test_an_error_is_told_in_full_where_it_arose_and_by_reference_above(lanes, ended):
    """The origin has the traceback; every phase that the exception passed names the origin and has none."""
    with pytest.raises(OutOfMemoryError), lanes.enter_phase("train"), lanes.enter_phase("step"):
        with lanes.enter_phase("forward"):
            raise OutOfMemoryError("8 GiB")
    errors = errors_of(ended)
    origin = ended[0].scope_id
    assert ["forward", "step", "train"] == [phase.name for phase in ended]
    assert {origin} == {error.root_cause_scope_id for error in errors.values()}
    assert {"8 GiB"} == {error.message for error in errors.values()}
    assert {f"{__name__}.OutOfMemoryError"} == {error.type for error in errors.values()}
    assert (None, None) == (errors["step"].traceback, errors["train"].traceback)
    assert 'raise OutOfMemoryError("8 GiB")' in errors["forward"].traceback
    assert [PhaseStatus.FAILED] * 3 == [phase.status for phase in ended]


def test_an_error_raised_above_an_ended_phase_arose_above(lanes, ended):
    """A phase that went well before is no origin."""
    with pytest.raises(ValueError, match="x"), lanes.enter_phase("train") as train:
        with lanes.enter_phase("step"):
            pass
        raise ValueError("x")
    assert None is ended[0]._extra
    assert train.scope_id == train._extra.error.root_cause_scope_id
    assert train._extra.error.traceback is not None


def test_a_handled_failure_leaves_its_parents_clean(lanes, ended):
    """The phase itself failed; the one that handled it succeeded and says nothing of it."""
    with lanes.enter_phase("train") as train:
        try:
            with lanes.enter_phase("step"):
                raise ValueError("bad batch")
        except ValueError:
            pass
    assert [PhaseStatus.FAILED, PhaseStatus.SUCCEEDED] == [phase.status for phase in ended]
    assert None is train._extra


def test_raise_from_points_at_the_cause(lanes, ended):
    """Another exception raised from the first one has the same root cause, and is not told in full again."""
    with pytest.raises(RuntimeError, match="step failed"), lanes.enter_phase("train"):
        try:
            with lanes.enter_phase("step"):
                raise ValueError("bad batch")
        except ValueError as error:
            raise RuntimeError("step failed") from error
    step, train = ended
    assert step.scope_id == train._extra.error.root_cause_scope_id
    assert ("RuntimeError", "step failed", None) == (
        train._extra.error.type,
        train._extra.error.message,
        train._extra.error.traceback,
    )


def test_an_exception_raised_while_another_is_handled_is_a_failure_of_its_own(lanes, ended):
    """Without `from`, the handler's own failure is the root cause: its code raised it."""
    with pytest.raises(KeyError), lanes.enter_phase("train") as train:
        try:
            with lanes.enter_phase("step"):
                raise ValueError("bad batch")
        except ValueError:
            raise KeyError("handler")  # noqa: B904 - the point of the test
    assert train.scope_id == train._extra.error.root_cause_scope_id


def test_a_shared_exception_object_raised_twice_fails_twice(lanes, ended):
    """Elsewhere the same object is a new failure with its own origin and traceback, not an echo of the first."""
    shared = ValueError("shared")
    for name in ("first", "second"):
        with pytest.raises(ValueError, match="shared"), lanes.enter_phase(name):
            raise shared
    first, second = ended
    assert [first.scope_id, second.scope_id] == [phase._extra.error.root_cause_scope_id for phase in ended]
    assert first._extra.error.traceback is not None
    assert second._extra.error.traceback is not None


def test_a_shared_exception_raised_again_beside_its_origin_is_a_new_failure(lanes, ended):
    """Two siblings under one parent raise one object: the parent blames the one that failed it."""
    shared = ValueError("shared")
    with pytest.raises(ValueError, match="shared"), lanes.enter_phase("train"):
        try:
            with lanes.enter_phase("first"):
                raise shared
        except ValueError:
            pass
        with lanes.enter_phase("second"):
            raise shared
    first, second, train = ended
    assert second.scope_id == train._extra.error.root_cause_scope_id
    assert first.scope_id != second._extra.error.root_cause_scope_id


def test_an_exception_that_comes_back_through_another_lane_arose_where_it_did(lanes, ended, step_thread):
    """The last phase that it left is another lane's, and the first one is still beneath the one it leaves now."""
    error = ValueError("x")

    def pass_on():
        with lanes.enter_phase("other"):
            raise error

    with pytest.raises(ValueError, match="x"), lanes.enter_phase("train"):
        with pytest.raises(ValueError, match="x"), lanes.enter_phase("step") as step:
            raise error
        step_thread().do(pass_on)
    roots = {name: found.root_cause_scope_id for name, found in errors_of(ended).items()}
    assert dict.fromkeys(("step", "other", "train"), step.scope_id) == roots


def test_a_cause_that_failed_elsewhere_is_not_trusted(lanes, ended):
    """An exception of an unrelated phase, given as the cause, is not where this one arose."""
    cause = ValueError("elsewhere")
    with pytest.raises(ValueError, match="elsewhere"), lanes.enter_phase("elsewhere"):
        raise cause
    with pytest.raises(RuntimeError), lanes.enter_phase("train") as train:
        raise RuntimeError("here") from cause
    assert train.scope_id == train._extra.error.root_cause_scope_id
    assert "elsewhere" in train._extra.error.traceback


def test_a_group_points_at_its_first_member_that_failed_beneath(lanes, ended):
    """A group of what phases beneath raised has their root cause."""
    with pytest.raises(ExceptionGroup), lanes.enter_phase("train") as train:
        caught = []
        for name in ("first", "second"):
            try:
                with lanes.enter_phase(name):
                    raise ValueError(name)
            except ValueError as error:
                caught.append(error)
        raise ExceptionGroup("both", caught)
    assert ended[0].scope_id == train._extra.error.root_cause_scope_id
    assert PhaseStatus.FAILED == train.status


def test_a_group_in_another_order_still_points_at_what_failed_first(lanes, ended):
    """Members stand as their raiser put them; which failed first is what counts, and not which comes last."""
    with pytest.raises(ExceptionGroup), lanes.enter_phase("train") as train:
        caught = []
        for name in ("first", "second"):
            with pytest.raises(ValueError, match=name) as failure, lanes.enter_phase(name):
                raise ValueError(name)
            caught.insert(0, failure.value)
        raise ExceptionGroup("both", caught)
    assert (ended[0].scope_id, ("train", "first")) == (
        train._extra.error.root_cause_scope_id,
        train._extra.error.root_cause_path,
    )


def test_a_session_says_where_its_exception_arose(lanes, ended):
    """The rank's and the session's error refer to the phase of theirs that it came from, also from within a group."""
    with pytest.raises(ValueError, match="x") as failure, lanes.enter_phase("train"), lanes.enter_phase("step"):
        raise ValueError("x")
    for error in (failure.value, ExceptionGroup("all", [KeyError("y"), failure.value])):
        told = _errors.describe_for_session(error, lanes, "00" * 8, _errors.FULL)
        assert (ended[0].scope_id, ("train", "step"), None) == (
            told.root_cause_scope_id,
            told.root_cause_path,
            told.traceback,
        )


@pytest.mark.parametrize(("policy", "has_traceback"), [(_errors.FULL, True), (_errors.REFERENCE, False)])
def test_what_arose_in_no_phase_is_the_sessions_own(lanes, lenient, policy, has_traceback):
    """An exception outside of all phases, or of another session's, has its root cause in the session itself."""
    with pytest.raises(ValueError, match="x") as failure, lenient.enter_phase("elsewhere"):
        raise ValueError("x")
    told = _errors.describe_for_session(failure.value, lanes, "ab" * 8, policy)
    assert ("ab" * 8, (), "ValueError", "x") == (
        told.root_cause_scope_id,
        told.root_cause_path,
        told.type,
        told.message,
    )
    assert has_traceback == (told.traceback is not None)


def test_a_group_of_strangers_arose_where_it_was_raised(lanes):
    """Members that no phase knows leave the group its own origin."""
    with pytest.raises(ExceptionGroup), lanes.enter_phase("train") as train:
        raise ExceptionGroup("all", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    assert train.scope_id == train._extra.error.root_cause_scope_id
    assert "inner" in train._extra.error.traceback


def test_causes_that_run_in_a_circle_end(lanes):
    """Exceptions that are each other's cause are walked once."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(ValueError, match="first"), lanes.enter_phase("train") as train:
        raise first
    assert train.scope_id == train._extra.error.root_cause_scope_id


def test_only_so_many_causes_are_followed(lanes):
    """A chain of causes without end costs a bounded time; what lies beyond the bound is not found."""
    deep = ValueError("deep")
    with lanes.enter_phase("train") as train:
        with pytest.raises(ValueError, match="deep"), lanes.enter_phase("step") as step:
            raise deep
        chain = [deep]
        for number in range(_errors._MAX_CAUSES):
            following = ValueError(str(number))
            following.__cause__ = chain[-1]
            chain.append(following)
        origins = [_errors.trusted_origin(error, train) for error in chain]
    assert [step.scope_id] * _errors._MAX_CAUSES + [None] == origins


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(ValueError("x"), PhaseStatus.FAILED, id="ValueError"),
        pytest.param(KeyboardInterrupt(), PhaseStatus.CANCELLED, id="KeyboardInterrupt"),
        pytest.param(SystemExit(3), PhaseStatus.CANCELLED, id="SystemExit"),
        pytest.param(GeneratorExit(), PhaseStatus.CANCELLED, id="GeneratorExit"),
        pytest.param(
            BaseExceptionGroup("g", [KeyboardInterrupt(), SystemExit()]), PhaseStatus.CANCELLED, id="cancelling group"
        ),
        pytest.param(
            BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()]), PhaseStatus.FAILED, id="failing group"
        ),
    ],
)
@pytest.mark.parametrize("way", ["with", "close", "exit"])
def test_every_kind_of_end_is_told_truthfully(lanes, ended, error, status, way):
    """Failures fail, what ends work from outside cancels; by with, close and exit alike, and it passes unchanged."""
    if way == "with":
        caught = None
        try:
            with lanes.enter_phase("train"):
                raise error
        except BaseException as passed:
            caught = passed
        assert error is caught
    elif way == "close":
        lanes.enter_phase("train").close(error=error)
    else:
        lanes.exit(lanes.enter("train"), error=error)
    assert [status] == [phase.status for phase in ended]
    told = ended[0]._extra.error
    assert (type(error).__name__ in told.type, ended[0].scope_id) == (True, told.root_cause_scope_id)
    assert (status is PhaseStatus.FAILED) == (told.traceback is not None), "only a failure has a traceback"


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status", "has_error", "has_traceback"),
    [
        (FULL, PhaseStatus.FAILED, True, True),
        (REFERENCE, PhaseStatus.FAILED, True, False),
        (NOT_A_FAILURE, PhaseStatus.SUCCEEDED, False, False),
    ],
)
def test_a_policy_decides_what_is_told(lanes, policy, status, has_error, has_traceback):
    """Full, by reference only, or no failure at all; the exception passes all the same."""
    with pytest.raises(KeyError), lanes.enter_phase("train") as train:
        train._extra_or_new().error_policy = lambda error: policy
        raise KeyError
    error = train._extra.error
    assert (status, has_error) == (train.status, error is not None)
    assert has_traceback == (error is not None and error.traceback is not None)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OutOfMemoryError(), f"{__name__}.OutOfMemoryError"),
        (pickle.PickleError(), "_pickle.PickleError"),
    ],
)
def test_types_are_named_in_full_but_for_builtins(error, expected):
    """As OpenTelemetry's `error.type` has it."""
    assert expected == type_name(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("plain"), "plain"),
        (ValueError(), ""),
        (KeyError("k"), "'k'"),
        (Unprintable(), "<unprintable Unprintable>"),
        (Panicking(), "<unprintable Panicking>"),
        (ValueError("lone \ud800"), r"lone \ud800"),
    ],
)
def test_texts_never_raise(error, expected):
    """Whatever `__str__` does."""
    assert expected == text_of(error)


def test_texts_are_bounded():
    """A megabyte of message is cut, and says so; the limit itself is whole."""
    assert "x" * (MAX_MESSAGE_CHARS - 1) + "\N{HORIZONTAL ELLIPSIS}" == text_of(ValueError("x" * 1_000_000))
    assert "x" * MAX_MESSAGE_CHARS == text_of(ValueError("x" * MAX_MESSAGE_CHARS))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Unprintable, ()), (Panicking, ()), (Hostile, ("h",)), (Frozen, (3,)), (Slotted, ("s",)), (SilentError, (1, 2))],
)
def test_odd_exceptions_pass_as_they_are(lanes, ended, kind, arguments):
    """An unprintable, frozen, slotted or hostile exception is the one that surfaces, through both phases."""
    caught, error = None, kind(*arguments)
    try:
        with lanes.enter_phase("train"), lanes.enter_phase("step"):
            raise error
    except BaseException as passed:
        caught = passed
    assert (error is caught) is True, (
        "compared outside of pytest's sight, which would ask the hostile one for its class"
    )
    assert [PhaseStatus.FAILED] * 2 == [phase.status for phase in ended]
    assert {ended[0].scope_id} == {phase._extra.error.root_cause_scope_id for phase in ended}
    assert kind.__name__ in ended[0]._extra.error.traceback


def test_a_huge_traceback_keeps_its_innermost_frames():
    """A recursion of thousands of frames is told in a bounded text that ends with the error."""

    def recurse(depth: int) -> None:
        if depth == 0:
            fail(ValueError("at the bottom"))
        recurse(depth - 1)

    try:
        recurse(800)
    except ValueError as error:
        text = format_traceback(error)
    assert len(text) <= MAX_TRACEBACK_CHARS + 100
    assert text.rstrip().endswith("ValueError: at the bottom")
    assert "in fail" in text


def test_a_long_traceback_is_cut_in_its_middle(lanes):
    """Both ends stay, and the text says how much is missing."""
    error = ValueError("A" * 40_000 + "Z")
    text = format_traceback(error)
    half = MAX_TRACEBACK_CHARS // 2
    whole = len(f"ValueError: {'A' * 40_000}Z\n")
    assert f"\n... {whole - 2 * half} characters cut ...\n" in text
    assert text.startswith("ValueError: AAA")
    assert text.endswith("AZ\n")
    assert len(text) < MAX_TRACEBACK_CHARS + 60


def test_a_traceback_of_the_longest_allowed_length_stays_whole():
    """The limit itself is not cut."""
    frame = len("ValueError: \n")
    assert "cut ..." not in format_traceback(ValueError("A" * (MAX_TRACEBACK_CHARS - frame)))
    assert "cut ..." in format_traceback(ValueError("A" * (MAX_TRACEBACK_CHARS - frame + 1)))


def test_only_so_many_frames_are_formatted():
    """The innermost ones, since they tell where it happened."""
    source = "\n".join(f"def f{number}(): f{number - 1}()" for number in range(1, 100))
    space = {"f0": lambda: fail(ValueError("x"))}
    exec(source, space)  # noqa: S102 - a hundred functions, so that no frame repeats
    with pytest.raises(ValueError, match="x") as raised:
        space["f99"]()
    text = format_traceback(raised.value)
    assert MAX_TRACEBACK_FRAMES == text.count("File ")
    assert "in fail" in text
    assert "in f99" not in text


def test_a_traceback_that_cannot_be_formatted_is_told_by_its_frames(monkeypatch):
    """Where formatting raises, the frames and an honest last line are left."""

    def broken(*args, **kwargs):
        raise OSError("source file gone")

    monkeypatch.setattr(_errors.traceback, "format_exception", broken)
    with pytest.raises(ValueError, match="x") as raised:
        fail(ValueError("x"))
    text = format_traceback(raised.value)
    assert "in fail" in text
    assert text.endswith("ValueError: x\n")


def test_without_memory_a_failure_is_told_with_what_there_is(lanes, ended, monkeypatch):
    """No traceback, or no details at all: the phase ends, and the user's own exception surfaces."""

    def no_memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(_errors.traceback, "TracebackException", no_memory)
        context.setattr(_errors.traceback, "format_tb", no_memory)
        with pytest.raises(ValueError, match="bad"), lanes.enter_phase("a"):
            raise ValueError("bad batch")
    assert "ValueError: bad batch\n" == ended[0]._extra.error.traceback
    monkeypatch.setattr(_errors, "describe", no_memory)
    with pytest.raises(ValueError, match="bad"), lanes.enter_phase("b"):
        raise ValueError("bad batch")
    assert (PhaseStatus.FAILED, None) == (ended[1].status, ended[1]._extra.error)


def test_a_traceback_always_encodes():
    """A lone surrogate in a message becomes its escape."""
    assert "ValueError: lone \\ud800\n" == format_traceback(ValueError("lone \ud800"))


# --- what the exception keeps -----------------------------------------------------------------------------------------


class Tensor:
    """Stands for GPU memory that a frame holds."""


def test_no_frame_is_held(lanes, ended):
    """Once the user's code has let go of the exception, what its frames held is freed, with the records still kept."""
    tensors = []

    def step() -> None:
        tensor = Tensor()
        tensors.append(weakref.ref(tensor))
        with lanes.enter_phase("step"):
            raise ValueError("x")

    with lanes.enter_phase("train"):
        with contextlib.suppress(ValueError):
            step()
    gc.collect()
    assert ["step", "train"] == [phase.name for phase in ended]
    assert None is tensors[0]()


def test_no_exception_is_held(lanes, ended):
    """The record of a failure does not keep the exception alive."""

    class Watched(Exception):
        pass

    refs = []
    try:
        with lanes.enter_phase("step"):
            error = Watched()
            refs.append(weakref.ref(error))
            raise error
    except Watched:
        del error
    gc.collect()
    assert None is refs[0]()
    assert [PhaseStatus.FAILED] == [phase.status for phase in ended]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [ValueError, OutOfMemoryError])
def test_a_marked_exception_pickles(lanes, protocol, kind):
    """An exception that left a phase crosses processes as before; in its own one nobody trusts the copy's mark."""
    error = kind("8 GiB")
    with lanes.enter_phase("train") as train:
        with pytest.raises(kind), lanes.enter_phase("step") as step:
            raise error
        twin = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
        assert (kind, ("8 GiB",)) == (type(twin), twin.args)
        assert step.scope_id == _errors.trusted_origin(error, train)
        assert None is _errors.trusted_origin(twin, train)


def test_a_marked_exception_copies(lanes):
    """Neither a deep copy's mark nor a shallow one's is trusted."""
    error = ValueError("x")
    with lanes.enter_phase("train") as train:
        with pytest.raises(ValueError, match="x"), lanes.enter_phase("step"):
            raise error
        assert None is _errors.trusted_origin(copy.deepcopy(error), train)
        assert None is _errors.trusted_origin(copy.copy(error), train)


def test_in_another_process_a_mark_is_trusted_by_the_phases_that_it_names(lanes, recorder):
    """What crosses back says by ids what it was within: an ancestor there is one here, and nobody else."""
    from stormphase._lanes import LaneSet

    error = ValueError("8 GiB")
    with lanes.enter_phase("train") as train:
        with pytest.raises(ValueError, match="8 GiB"), lanes.enter_phase("step") as step:
            raise error
        data = pickle.dumps(error)
    here = LaneSet("s", 0, clock=recorder._clock, anchor=recorder.anchor, paths=recorder._paths)
    for own, expected in ((train, step.scope_id), (step, step.scope_id), (None, None)):
        twin = pickle.loads(data)  # noqa: S301 - our own bytes
        with here.enter_phase("own") as phase:
            if own is not None:  # As the process of that phase sees it: the id is its own.
                phase._lane.id_base = own.scope_id_number - (phase.scope_id_number - phase._lane.id_base)
            assert expected == _errors.trusted_origin(twin, phase)
            again = pickle.loads(pickle.dumps(twin))  # noqa: S301 - likewise
            assert expected == _errors.trusted_origin(again, phase)


def test_the_session_trusts_a_mark_of_its_own_from_another_process(lanes, recorder):
    """An exception that comes back outside of all phases still names where it arose."""
    from stormphase._lanes import LaneSet

    error = ValueError("x")
    with pytest.raises(ValueError, match="x"), lanes.enter_phase("step") as step:
        raise error
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    found = {}
    for session_id in ("s", "other"):
        here = LaneSet(session_id, 0, clock=recorder._clock, anchor=recorder.anchor, paths=recorder._paths)
        found[session_id] = _errors.describe_for_session(twin, here, "rank", _errors.FULL).root_cause_scope_id
    assert {"s": step.scope_id, "other": "rank"} == found
    assert "rank" == _errors.describe_for_session(twin, lanes, "rank", _errors.FULL).root_cause_scope_id


@pytest.mark.parametrize(("kind", "keeps_mark"), [(OutOfMemoryError, False), (ValueError, True)])
def test_a_mark_travels_with_what_leaves_a_process_that_works_for_another(lanes, recorder, kind, keeps_mark):
    """It is pickled from the last phase there on; once arrived, only a builtin exception keeps its mark in itself."""
    from stormphase._lanes import LaneSet

    error = kind("8 GiB")
    lanes.works_for_another = True
    with pytest.raises(kind), lanes.enter_phase("work") as work:
        with pytest.raises(kind), lanes.enter_phase("inner") as inner:
            raise error
        assert keeps_mark == bool(vars(error))
        raise error
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert vars(twin)
    here = LaneSet("s", 0, clock=recorder._clock, anchor=recorder.anchor, paths=recorder._paths)
    with pytest.raises(kind), here.enter_phase("train") as train:
        # As the process of that work sees it: the id of what it worked for is one of its own.
        train._lane.id_base = work.scope_id_number - (train.scope_id_number - train._lane.id_base)
        raise twin
    assert inner.scope_id == train._extra.error.root_cause_scope_id
    assert keeps_mark == bool(vars(twin))


def test_what_an_exception_carries_as_its_cause_is_followed(lanes):
    """Ray raises one of its own that has the task's as an attribute; anything else of that name is nothing."""
    with lanes.enter_phase("train") as train:
        error, wrapper, other = ValueError("x"), RuntimeError("wrapped"), RuntimeError("no")
        with pytest.raises(ValueError, match="x"), lanes.enter_phase("step") as step:
            raise error
        wrapper.cause, other.cause = error, "weather"
        assert (step.scope_id, None) == (_errors.trusted_origin(wrapper, train), _errors.trusted_origin(other, train))


def test_a_mark_moves_up_with_its_exception(lanes):
    """The last phase left is what an ancestor recognises, the origin stays."""
    error = ValueError("x")
    with lanes.enter_phase("train") as train, lanes.enter_phase("step") as step, lanes.enter_phase("forward") as inner:
        describe(error, inner, FULL)
        describe(error, step, FULL)
        (mark,) = _errors._marks_of(error)
        assert (inner.scope_id, True) == (mark.scope_id, mark.last is step)
        assert inner.scope_id == describe(error, train, FULL).root_cause_scope_id


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_that_comes_while_an_exception_is_read_passes(monkeypatch, wish):
    """A signal handler raises it, and not the user's `__str__`."""

    class Interrupted(Exception):
        def __str__(self):
            raise wish

    def interrupted(*arguments, **options):
        raise wish

    with pytest.raises(wish):
        text_of(Interrupted())
    monkeypatch.setattr(_errors.traceback, "TracebackException", interrupted)
    with pytest.raises(wish):
        format_traceback(ValueError("x"))


def test_what_was_handled_when_a_session_began_is_known_by_the_exception_itself():
    """By each session for itself, and whatever else stands in the place of the note."""
    error, other = ValueError("x"), ValueError("x")
    assert not _errors.was_handled(error, 1)
    _errors.note_handled(error, 1)
    _errors.note_handled(error, 3)
    assert [True, False, True] == [_errors.was_handled(error, start) for start in (1, 2, 3)]
    assert not _errors.was_handled(other, 1)
