"""What a type checker must say of `phase`: read by mypy in .ci/run, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, assert_type, overload

from stormphase import PhaseHandle
from stormphase._decorator import LatePhase, ambient_phase, phase

if TYPE_CHECKING:
    from stormphase._ambient import PhaseSource


def blocks(source: PhaseSource) -> int:
    """A block has the handle, and swallows nothing: what follows a return in it is known not to run."""
    late = phase(source, "load", attributes={"rows": 3}, sync=True)
    assert_type(late, LatePhase)
    assert_type(phase(source, "load", {"rows": 3}, True, 0.5), LatePhase)
    phase(source, "load", timeout_s=60)
    phase(source, "load", metadata={"rows": 3})  # type: ignore[call-overload]
    phase(source, "load", capture=True)
    phase(source, "load", capture="fd")
    phase(source, "load", capture="stdout")  # type: ignore[call-overload]
    with late as handle:
        assert_type(handle, PhaseHandle)
    with ambient_phase("tokenize"):
        return 1


async def async_blocks(source: PhaseSource) -> int:
    """The same of async blocks."""
    async with phase(source, "load") as handle:
        assert_type(handle, PhaseHandle)
        return 1


def late_attributes(arguments: Mapping[str, Any], result: object, error: BaseException | None) -> dict[str, int]:
    """Return attributes that are known at exit only."""
    return {"arguments": len(arguments), "failed": int(error is not None), "has_result": int(result is not None)}


def options(source: PhaseSource) -> None:
    """Every option has a type of its own."""
    phase(source, "a", arguments=("batch", "config.depth"), at_exit=late_attributes, result=True, level="info")
    phase(source, "a", result="rows", filter="load*", level=10, errors={ValueError: "not_a_failure"})
    phase(source, "a", filter=lambda name, attributes: name == "a" and attributes["epoch"] == 0)
    phase(source, "a", errors={ValueError: "ignore"})  # type: ignore[dict-item]
    phase(source, "a", arguments=(1,))  # type: ignore[arg-type]
    phase(source, "a", at_exit=len)  # type: ignore[arg-type]
    phase(source, 3)  # type: ignore[call-overload]
    phase(source, "a", attribute={"a": 1})  # type: ignore[call-overload]
    ambient_phase("a", attribute={"a": 1})  # type: ignore[call-overload]


def functions(source: PhaseSource) -> None:
    """A decorated function keeps its signature, whatever kind it is of."""

    @phase(source, "load")
    def load(path: str, *, limit: int = 0) -> list[str]:
        return [path] * limit

    @phase(source, "evaluate")
    async def evaluate(batch: int) -> float:
        return float(batch)

    @phase(source, "batches")
    def batches(count: int) -> Generator[int, str, bool]:
        yield count
        return True

    @phase(source, "stream")
    async def stream(count: int) -> AsyncGenerator[int, str]:
        yield count

    assert_type(load("digits", limit=1), list[str])
    evaluating: Callable[[int], Coroutine[Any, Any, float]] = evaluate
    evaluating(1).close()
    assert_type(batches(3), Generator[int, str, bool])
    assert_type(stream(3), AsyncGenerator[int, str])
    load(1)  # type: ignore[arg-type]
    load("digits", limits=1)  # type: ignore[call-arg]
    evaluate().close()  # type: ignore[call-arg]


@ambient_phase
def bare(text: str) -> Iterator[str]:
    """Need no call."""
    yield text


@ambient_phase("both")
@overload
def either(value: int) -> int: ...
@ambient_phase("both")
@overload
def either(value: str) -> str: ...
@ambient_phase("both")
def either(value: int | str) -> int | str:
    """Return what was given."""
    return value


class Trainer:
    """Has methods of every kind."""

    @ambient_phase("step")
    def step(self, batch: int) -> float:
        """Train on one batch."""
        return float(batch)

    @staticmethod
    @ambient_phase("below")
    def below(batch: int) -> float:
        """Need no trainer."""
        return float(batch)

    @ambient_phase("above")
    @staticmethod
    def above(batch: int) -> float:
        """Need no trainer."""
        return float(batch)

    @classmethod
    @ambient_phase("of class")
    def of_class(cls, batch: int) -> str:
        """Need the class."""
        return cls.__name__ * batch

    @property
    @ambient_phase("getter")
    def loss(self) -> float:
        """Compute the loss."""
        return 0.5


def methods(trainer: Trainer) -> None:
    """Methods keep their signatures, decorated above or below."""
    assert_type((trainer.step(1), trainer.loss), tuple[float, float])
    assert_type((Trainer.below(1), Trainer.above(1)), tuple[float, float])
    assert_type(Trainer.of_class(1), str)
    assert_type(bare("a"), Iterator[str])
    assert_type((either(1), either("a")), tuple[int, str])
    kept: Callable[[int], float] = trainer.step
    kept(1)
    trainer.step("a")  # type: ignore[arg-type]
    Trainer.below("a")  # type: ignore[arg-type]
    Trainer.above("a")  # type: ignore[arg-type]


async def use(stream: AsyncIterator[int]) -> None:
    """Use what a decorated async generator gives."""
    async for item in stream:
        assert_type(item, int)
