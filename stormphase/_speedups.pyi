# What `_speedups.c` offers. Used by `_native` and by those whose classes it has to know; see there.

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

ABI: int  # What it and `_native` expect of each other.
WRITES_FRAMES: int  # Whether a hook takes what `Descriptors.write_text` returns and writes by it.
SOURCE: str  # The SHA-256 of what it was built from, as hex digits.

def bind(
    *,
    handle: type,
    lane: type,
    lanes: type,
    path: type,
    quiet_name: type,
    variable: ContextVar[Any],
    clock: Callable[[], int],
    enter_phase: Callable[..., Any],
    exit_phase: Callable[..., None],
    take_back: Callable[..., None],
    active: object,
    succeeded: object,
    slot_bytes: int,
    no_step: int,
) -> tuple[Any, Any, Any]: ...
def enter_phase_of(owner: type, /) -> Any: ...
def bind_writer(*, writer: type, segment_bytes: int, blobs_from_at: int, max_blob: int) -> None: ...
def span_put(
    variable: ContextVar[Any], span_key: str, phase_key: str, context: type, span: type, /
) -> Callable[[Any], Token[Any]]: ...
def slot_stores(file: object, /) -> tuple[Callable[..., None], Callable[..., None]]: ...
def without_secrets(text: str, marker: str, /) -> str: ...
def watch_stores(watcher: Callable[[], object] | None, /) -> None: ...
