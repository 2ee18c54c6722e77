"""The options of `phase(...)`: what is put on a phase, what is made of an error, and what is kept from the sinks."""

from __future__ import annotations

import functools
import re
import types
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import _boundary
from stormphase._counts import Counts
from stormphase._decorator import ambient_phase, phase
from stormphase._filters import FILTER_ERRORS, LEVELS, Filter, level_number
from stormphase._model import PhaseStatus
from stormphase._options import ARGUMENT_ERRORS, ArgumentReader
from stormphase._recipe import AT_EXIT_ERRORS
from stormphase._tracker import PhaseTracker
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle

SUCCEEDED, FAILED, CANCELLED = PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.CANCELLED


class PanicError(BaseException):
    """What a library written in Rust raises when it panics."""


def raising(error: BaseException) -> Any:
    """Return a callable that raises."""

    def call(*_: Any) -> Any:
        raise error

    return call


@pytest.fixture
def source(lanes: LaneSet, ended: list[PhaseHandle]) -> Any:
    """Return a source on strict lanes, whose phases come to stand in `ended`."""
    return types.SimpleNamespace(lane_set=lanes, enter_phase=lanes.enter_phase)


@pytest.fixture
def tracker(source: Any) -> Any:
    """Return what has a `phase` as a tracker has."""
    return types.SimpleNamespace(phase=functools.partial(phase, source))


def attributes(ended: list[PhaseHandle]) -> list[Any]:
    """Return all attributes of each ended phase."""
    return [_boundary.all_attributes(each) for each in ended]


# Attributes and arguments


def test_fixed_attributes_are_copied(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Changes after the decoration do not show."""
    given_attributes = {"a": [1]}
    f = tracker.phase("f", attributes=given_attributes)(lambda: None)
    given_attributes["a"].append(2)
    f()
    assert [{"a": [1]}] == attributes(ended)


def test_fixed_attributes_are_a_mapping(tracker: Any) -> None:
    """Anything else fails at decoration."""
    with pytest.raises(TypeError, match=re.escape('Write attributes={"epoch": 1}')):
        tracker.phase("f", attributes=3)


def test_selected_arguments(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Arguments are read at enter however they were given, defaults included."""

    @tracker.phase("f", arguments=("first", "second", "rest", "third", "fourth", "more"), attributes={"k": 1})
    def f(first: int, /, second: int = 2, *rest: int, third: int, fourth: int = 4, **more: int) -> None: ...

    f(1, third=3)
    f(5, 6, 7, 8, third=9, fourth=10, first=11, other=12)
    assert [
        {"k": 1, "first": 1, "second": 2, "rest": [], "third": 3, "fourth": 4, "more": {}},
        {
            "k": 1,
            "first": 5,
            "second": 6,
            "rest": [7, 8],
            "third": 9,
            "fourth": 10,
            "more": {"first": 11, "other": 12},
        },
    ] == attributes(ended)


def test_an_argument_that_was_not_given(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A call that lacks an argument raises what it would, and its phase lacks the attribute."""
    f = tracker.phase("f", arguments=("a", "b"))(lambda a, *, b: None)
    with pytest.raises(TypeError, match="missing"):
        f()
    assert [{}] == attributes(ended)


def test_an_argument_by_any_name(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Where a function takes any keyword, any may be selected."""
    f = tracker.phase("f", arguments="depth")(lambda **_: None)
    f(depth=3)
    f()
    assert [{"depth": 3}, {}] == attributes(ended)


def test_an_attribute_of_an_argument(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A dot leads to an attribute; one that cannot be read is counted, and the call goes on."""
    config = types.SimpleNamespace(model=types.SimpleNamespace(depth=3))
    f = tracker.phase("f", arguments=("config.model.depth", "config.missing"))(lambda config: config)
    assert config is f(config)
    assert [{"config.model.depth": 3}] == attributes(ended)
    assert {ARGUMENT_ERRORS: 1} == lanes.counts.to_dict()


@pytest.mark.parametrize("error", [RuntimeError(), PanicError()])
def test_an_attribute_that_raises(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], error: BaseException) -> None:
    """A property that raises hurts nobody."""
    hostile = type("Hostile", (), {"size": property(raising(error))})()
    assert hostile is tracker.phase("f", arguments="x.size")(lambda x: x)(hostile)
    assert ([{}], {ARGUMENT_ERRORS: 1}) == (attributes(ended), lanes.counts.to_dict())


def test_an_interrupt_while_an_argument_is_read(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Ctrl-C is no failure of the attribute: it passes."""
    hostile = type("Hostile", (), {"size": property(raising(KeyboardInterrupt()))})()
    with pytest.raises(KeyboardInterrupt):
        tracker.phase("f", arguments="x.size")(lambda x: x)(hostile)
    assert [] == ended


def test_arguments_of_a_method(tracker: Any, ended: list[PhaseHandle]) -> None:
    """`self` counts as a parameter, and a class method's arguments are found above and below."""

    class Trainer:
        rank = 7

        @tracker.phase("step", arguments=("self.rank", "batch"))
        def step(self, batch: int) -> None: ...

        @tracker.phase("above", arguments=("cls.rank", "batch"))
        @classmethod
        def above(cls, batch: int) -> None: ...

    Trainer().step(1)
    Trainer.above(batch=2)
    assert [{"self.rank": 7, "batch": 1}, {"cls.rank": 7, "batch": 2}] == attributes(ended)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batchsize", "has no parameter 'batchsize'; it has batch_size, epoch. Did you mean 'batch_size'?"),
        ("zzz.size", "has no parameter 'zzz'; it has batch_size, epoch. Name one of those."),
    ],
)
def test_an_unknown_argument(tracker: Any, name: str, message: str) -> None:
    """A name that is no parameter fails at decoration, with near ones."""
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:

        @tracker.phase("f", arguments=(name,))
        def load(batch_size: int, epoch: int) -> None: ...

    assert "arguments" == caught.value.setting
    assert f"{__name__}.test_an_unknown_argument.<locals>.load() has" in str(caught.value)


@pytest.mark.parametrize("arguments", [("",), ("a b",), ("a.",), (3,), 3, True])
def test_an_argument_that_is_no_name(tracker: Any, arguments: Any) -> None:
    """What can be no parameter's name fails when it is told; so does True, which only `result` may be."""
    with pytest.raises(ConfigurationError, match="must be names of parameters"):
        tracker.phase("f", arguments=arguments)


def test_a_function_without_signature(tracker: Any, ended: list[PhaseHandle]) -> None:
    """One whose parameters are not known takes any, and its arguments come as `args` and `kwargs`."""

    def note(arguments: Any, result: Any, error: Any) -> Any:
        return dict(arguments)

    smallest = tracker.phase("f", at_exit=note)(min)
    assert 1 == smallest(2, 1)
    assert [{"args": [2, 1], "kwargs": {}}] == attributes(ended)


@given(st.data())
def test_arguments_are_read_as_python_binds_them(data: st.DataObject) -> None:
    """For any signature and any call that fits it, what is read is what the function receives."""
    names = "abcdefgh"
    positional_only = data.draw(st.integers(0, 2))
    positional = data.draw(st.integers(0, 2))
    keyword_only = data.draw(st.integers(0, 2))
    defaults_from = data.draw(st.integers(0, positional_only + positional))
    parameters: list[str] = []
    for index in range(positional_only + positional):
        if positional_only and index == positional_only:
            parameters.append("/")
        parameters.append(names[index] + (f"={index}" if index >= defaults_from else ""))
    if positional_only and not positional:
        parameters.append("/")
    parameters.append("*rest")
    keywords = [names[positional_only + positional + index] for index in range(keyword_only)]
    parameters += [f"{keyword}=0" for keyword in keywords]
    parameters.append("**more")
    space: dict[str, Any] = {}
    exec(f"def f({', '.join(parameters)}): return dict(locals())", space)  # noqa: S102 - our own text
    count = data.draw(st.integers(defaults_from, positional_only + positional + 2))
    args = tuple(range(100, 100 + count))
    free = [names[index] for index in range(max(count, positional_only), positional_only + positional)]
    kwargs = {name: name * 2 for name in data.draw(st.sets(st.sampled_from([*free, *keywords, "other"])))}
    received = space["f"](*args, **kwargs)
    reader = ArgumentReader(tuple(received), space["f"], "f()")
    assert received == reader.read(None, args, kwargs, Counts())


# What is known at the end


def test_attributes_at_exit(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The callable sees the bound arguments, and the result or the error; what it returns is put on the phase."""
    seen: list[Any] = []

    def note(arguments: Any, result: Any, error: Any) -> Any:
        seen.append((dict(arguments), result, error))
        return {"late": len(seen)} if result else None

    @tracker.phase("f", at_exit=note)
    def f(a: int, b: int = 0) -> float:
        return a / b

    f(6, b=2)
    with pytest.raises(ZeroDivisionError) as caught:
        f(1)
    assert [({"a": 6, "b": 2}, 3.0, None), ({"a": 1, "b": 0}, None, caught.value)] == seen
    assert [{"late": 1}, None] == attributes(ended)


def test_attributes_at_the_exit_of_a_block(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A block has neither arguments nor a result, but it can fail."""
    late = tracker.phase("a", at_exit=lambda arguments, result, error: {"seen": [dict(arguments), result, str(error)]})
    with late:
        pass
    with pytest.raises(ValueError, match="boom"), late:
        raise ValueError("boom")
    assert [{"seen": [{}, None, "None"]}, {"seen": [{}, None, "boom"]}] == attributes(ended)


@pytest.mark.parametrize("error", [ValueError("late"), PanicError()])
def test_a_failure_at_exit_is_counted(
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], error: BaseException
) -> None:
    """A callable that raises changes neither result nor exception."""
    mine = KeyError("mine")
    f = tracker.phase("f", at_exit=raising(error))(lambda a: raising(mine)() if a else "fine")
    assert "fine" == f(0)
    with pytest.raises(KeyError) as caught:
        f(1)
    assert (mine, None, None) == (caught.value, mine.__context__, mine.__cause__)
    assert [SUCCEEDED, FAILED] == [each.status for each in ended]
    assert {AT_EXIT_ERRORS: 2} == lanes.counts.to_dict()


def test_what_at_exit_returns_must_be_a_mapping(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """Anything else is counted like a failure."""
    tracker.phase("f", at_exit=lambda *_: 3)(lambda: None)()
    assert ({AT_EXIT_ERRORS: 1}, 1) == (lanes.counts.to_dict(), len(ended))


def test_an_interrupt_at_exit(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Ctrl-C during the callable is the user's, and cancels the phase."""
    with pytest.raises(KeyboardInterrupt):
        tracker.phase("f", at_exit=raising(KeyboardInterrupt()))(lambda: None)()
    assert [CANCELLED] == [each.status for each in ended]


@pytest.mark.parametrize(("result", "key"), [(True, "result"), ("rows", "rows")])
def test_the_result_as_attribute(tracker: Any, ended: list[PhaseHandle], result: Any, key: str) -> None:
    """The result becomes an attribute, bounded, and is returned whole."""
    f = tracker.phase("f", result=result)(lambda: "x" * 10_000)
    assert 10_000 == len(f())
    assert [[key]] == [list(each) for each in attributes(ended)]
    assert 4_096 == len(attributes(ended)[0][key])


@pytest.mark.parametrize("result", ["", "  ", 3, None])
def test_a_result_that_is_no_name(tracker: Any, result: Any) -> None:
    """What can be no attribute's name fails when it is told."""
    with pytest.raises(ConfigurationError, match='Write result=True, or result="rows"'):
        tracker.phase("f", result=result)


def test_at_exit_must_be_callable(tracker: Any) -> None:
    """Anything else fails when it is told."""
    with pytest.raises(ConfigurationError, match="at_exit must be callable"):
        tracker.phase("f", at_exit={"a": 1})


def test_sync_is_kept(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A phase in which ranks wait for each other says so, from a block and from a function."""
    late = tracker.phase("all_reduce", sync=True)
    with late:
        late(lambda: None)()
    assert [True, True] == [each._extra.is_sync for each in ended]  # type: ignore[union-attr]


def test_an_unknown_option(tracker: Any) -> None:
    """A name that is no option is refused as Python does it."""
    with pytest.raises(TypeError, match="attribute_s"):
        tracker.phase("f", attribute_s={})


# Error policies


@pytest.mark.parametrize(
    ("error", "status", "has_error", "has_traceback"),
    [
        (FileNotFoundError("x"), SUCCEEDED, False, False),
        (PermissionError("x"), FAILED, True, False),
        (ValueError("x"), FAILED, True, True),
        (KeyError("x"), FAILED, True, True),
        (KeyboardInterrupt("x"), SUCCEEDED, False, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_policy_by_exception(  # noqa: PLR0917 - pytest gives them by name
    tracker: Any, ended: list[PhaseHandle], error: BaseException, status: Any, has_error: bool, has_traceback: bool
) -> None:
    """The most specific class that has a policy decides, and the exception passes whatever the policy is."""
    policies = {
        OSError: "reference",
        FileNotFoundError: "not_a_failure",
        ValueError: "full",
        KeyboardInterrupt: "not_a_failure",
    }
    late = tracker.phase("a", errors=policies)
    f = late(raising(error))
    with pytest.raises(type(error)), late:
        f()
    described = [None if each._extra is None else each._extra.error for each in ended]
    assert [status, status] == [each.status for each in ended]
    assert [has_error, has_error] == [each is not None for each in described]
    assert [has_traceback, False] == [each is not None and each.traceback is not None for each in described]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([ValueError], "must be a mapping, not list"),
        ({"ValueError": "full"}, "has the key 'ValueError', which is no exception class"),
        ({int: "full"}, "which is no exception class"),
        ({ValueError: "ignore"}, "has 'ignore' for ValueError, which is none of full, reference, not_a_failure"),
    ],
)
def test_a_wrong_policy(tracker: Any, wrong: Any, message: str) -> None:
    """A policy that cannot work fails when it is told, with an example."""
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        tracker.phase("a", errors=wrong)
    assert 'Write errors={StopTraining: "not_a_failure"' in str(caught.value)


# Filters


@pytest.fixture
def sinks(lanes: LaneSet, ended: list[PhaseHandle]) -> dict[str, list[Any]]:
    """Return what the sinks hear: names entered, names exited, and names kept from them."""
    heard: dict[str, list[Any]] = {"enter": [], "exit": [], "quiet": []}
    lanes.enter_queues = (lambda entry: heard["enter"].append(entry[0].name),)
    lanes.exit_queues = (lambda each: heard["exit"].append(each.name), ended.append)
    lanes.quiet_queues = (lambda each: heard["quiet"].append(each.name),)
    return heard


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"filter": "load*"}, True),
        ({"filter": "*batch"}, True),
        ({"filter": "load"}, False),
        ({"filter": "LOAD*"}, False),
        ({"filter": lambda name, attributes: name == "load batch"}, True),
        ({"filter": lambda name, attributes: attributes.get("a")}, False),
        ({"level": "info"}, True),
        ({"level": "debug"}, False),
        ({"level": 15}, True),
        ({"level": 14}, False),
        ({"level": "error", "filter": "x*"}, False),
        ({"level": "debug", "filter": "load*"}, False),
        ({"level": "error", "filter": "load*"}, True),
    ],
)
def test_what_passes_a_filter(  # noqa: PLR0917 - pytest gives them by name
    tracker: Any, source: Any, sinks: dict[str, list[Any]], lanes: LaneSet, options: dict[str, Any], passes: bool
) -> None:
    """A success is kept from the sinks, its enter and its exit, unless all that was given lets it pass."""
    source.level = 15
    late = tracker.phase("load batch", **options)
    late(lambda: None)()
    with late:
        pass
    both = ["load batch"] * 2
    heard = {"enter": both, "exit": both, "quiet": []} if passes else {"enter": [], "exit": [], "quiet": both}
    assert heard == sinks
    assert (
        ((2, 2), 0) == (lanes.boundary_counts(), lanes.counts["filtered"])
        if passes
        else (
            (0, 0),
            2,
        )
        == (lanes.boundary_counts(), lanes.counts["filtered"])
    )


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_failure_passes_every_filter(tracker: Any, sinks: dict[str, list[Any]], error: BaseException) -> None:
    """What FAILED or was CANCELLED is never kept from the sinks."""
    with pytest.raises(type(error)):
        tracker.phase("a", filter="b")(raising(error))()
    assert {"enter": [], "exit": ["a"], "quiet": []} == sinks


def test_phases_inside_a_quiet_one(tracker: Any, sinks: dict[str, list[Any]]) -> None:
    """What a filter keeps is still the parent of what is inside it."""
    with tracker.phase("quiet", filter="b"), tracker.phase("inner") as inner:
        assert "quiet / inner" == inner.phase_path
    assert {"enter": ["inner"], "exit": ["inner"], "quiet": ["quiet"]} == sinks


def test_a_filter_is_asked_once(tracker: Any) -> None:
    """It is asked at enter, with the attributes as they are then, which it cannot change."""
    asked: list[Any] = []

    def ask(name: str, attributes: Any) -> bool:
        asked.append((name, dict(attributes)))
        with pytest.raises(TypeError):
            attributes["a"] = 2
        return False

    @tracker.phase("g", filter=ask, arguments="a", attributes={"k": 1})
    def g(a: int) -> Any:
        yield a
        yield a

    list(g(3))
    assert [("g", {"k": 1, "a": 3})] == asked


@pytest.mark.parametrize("error", [ValueError(), PanicError()])
def test_a_filter_that_raises(tracker: Any, sinks: dict[str, list[Any]], lanes: LaneSet, error: BaseException) -> None:
    """It is counted, and lets the phase pass."""
    tracker.phase("a", filter=raising(error))(lambda: None)()
    assert ({"enter": ["a"], "exit": ["a"], "quiet": []}, 1) == (sinks, lanes.counts[FILTER_ERRORS])


def test_a_filter_whose_answer_raises(tracker: Any, sinks: dict[str, list[Any]], lanes: LaneSet) -> None:
    """An answer that is neither true nor false, as an array's is, counts as a failure."""
    answer = type("Answer", (), {"__bool__": raising(ValueError("ambiguous"))})()
    tracker.phase("a", filter=lambda *_: answer)(lambda: None)()
    assert (["a"], 1) == (sinks["exit"], lanes.counts[FILTER_ERRORS])


def test_an_interrupt_in_a_filter(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Ctrl-C is no failure of the filter: it passes, and there is no phase."""
    with pytest.raises(KeyboardInterrupt):
        tracker.phase("a", filter=raising(KeyboardInterrupt()))(lambda: None)()
    assert [] == ended


def test_a_tracker_without_a_level(tracker: Any, sinks: dict[str, list[Any]]) -> None:
    """Where the tracker has none, every level passes."""
    tracker.phase("a", level="debug")(lambda: None)()
    assert ["a"] == sinks["exit"]


@pytest.mark.parametrize(("level", "number"), [*LEVELS.items(), ("Info", 20), (0, 0), (-3, -3)])
def test_levels(level: Any, number: int) -> None:
    """A level is a number, or a name of logging in any case."""
    assert number == level_number(level)


@pytest.mark.parametrize("level", ["loud", True, 1.5, None])
def test_a_wrong_level(level: Any) -> None:
    """Anything else fails when it is told."""
    with pytest.raises(ConfigurationError, match="must be a number or one of debug, info, warning") as caught:
        level_number(level, "level")
    assert "level" == caught.value.setting


def test_a_wrong_filter(tracker: Any) -> None:
    """What is neither a pattern nor callable fails when it is told."""
    with pytest.raises(ConfigurationError, match="must be a pattern of names or a callable"):
        tracker.phase("a", filter=3)
    assert Filter.of(None, None) is None


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("argument", "Did you mean 'arguments'?"),
        ("on_exit", "Did you mean 'at_exit'?"),
        ("zzz", "It has attributes, sync, timeout_s, ar"),
    ],
)
def test_an_option_that_there_is_not_is_refused_by_the_name_that_the_user_wrote(option, fix):
    """A slip of the pen is named with what was meant, in programs and in libraries."""
    for enter_late in (PhaseTracker(bridge=None).phase, ambient_phase):
        with pytest.raises(TypeError) as raised:
            enter_late("load", **{option: 1})
        assert str(raised.value).startswith(f"phase() has no option {option!r}. {fix}")
