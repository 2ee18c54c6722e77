"""Which task runs now: asyncio's, anyio's (which are asyncio's or trio's), trio's own or a greenlet; else None.

None of these libraries is imported here before the program uses it, except that a recorder imports asyncio when it is
made: `asyncio._get_running_loop` (exported for event loops) is the one cheap question whether a loop runs here.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


_NOTEBOOKS: Final = frozenset({"IPython", "ipykernel"})
_TOP_LEVEL: Final = "<module>"  # the code of a coroutine only at a prompt that knows a bare `await`


def running_loop_probe() -> Callable[[], object]:
    """Return the function that says which asyncio loop runs in the calling thread, or None; imports asyncio."""
    from asyncio import events  # noqa: PLC0415 - 30 ms that only a program with a recorder should pay

    return events._get_running_loop


def may_be_in_trio_or_greenlet() -> bool:
    """Return whether one of these libraries is loaded, so that the caller may run in a task or a greenlet of it."""
    return "trio" in sys.modules or "greenlet" in sys.modules


def running_tasks() -> Collection[Any]:
    """Return what is empty while no asyncio task runs in any thread; what never is, where CPython does not show that.

    To look at it costs a fifth of asking for the loop. Up to 3.13 the tasks' own implementation keeps it, in C.
    """
    tasks = getattr(sys.modules.get("_asyncio"), "_current_tasks", None)
    return tasks if isinstance(tasks, dict) else (None,)


def current_task() -> Any:
    """Return the task that the caller runs in, or None; for asyncio, anyio on both its backends, trio and greenlets.

    Within a task of asyncio a greenlet is a part of that, as SQLAlchemy uses them. The greenlet in which a thread began
    is no task: it is the thread.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # The loop was closed in between, by a debugger or a signal handler.
            task = None
        if task is not None:
            return task
    trio = sys.modules.get("trio")
    lowlevel = getattr(trio, "lowlevel", None)  # Half imported in another thread: nothing runs in it yet.
    if lowlevel is not None:
        is_in_task = getattr(lowlevel, "in_trio_task", None)
        # Newer ones say so without an exception, which each phase would pay for where trio is loaded and does not run.
        if is_in_task is None or is_in_task():
            with contextlib.suppress(RuntimeError):
                return lowlevel.current_task()
    return _current_greenlet() if "greenlet" in sys.modules else None


def _current_greenlet() -> Any:
    """Return the greenlet that the caller runs in, or None in the one in which its thread began."""
    getcurrent = getattr(sys.modules.get("greenlet"), "getcurrent", None)
    if getcurrent is None:
        return None
    current = getcurrent()
    return None if current.parent is None else current


def first_greenlet() -> Any:
    """Return the greenlet in which the calling thread began; called in another one."""
    greenlet = _current_greenlet()
    while greenlet is not None and greenlet.parent is not None:
        greenlet = greenlet.parent
    return greenlet


def call_in_greenlet(greenlet: Any, call: Callable[[Any], object], argument: Any) -> None:
    """Call in the context of a greenlet of this thread that does not run now, if it lives and lets others in.

    `call` may raise ValueError, where that is not the context that it is meant for.
    """
    # None has no context, nor has a dead one; and one may be within `Context.run`, which does not let others in.
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        greenlet.gr_context.run(call, argument)


def is_greenlet(task: Any) -> bool:
    """Return whether a task is a greenlet."""
    kind = getattr(sys.modules.get("greenlet"), "greenlet", None)
    return kind is not None and isinstance(task, kind)


def runs_cells(task: Any) -> bool:
    """Return whether a task runs cells: of IPython, of a kernel that builds on it, or of the asyncio prompt.

    A kernel may run each cell in a task of its own, or all in one; cells are one program all the same. Never raises.
    """
    try:
        coroutine = task.get_coro() if hasattr(task, "get_coro") else task.coro
        frame = coroutine.cr_frame
        module = str(frame.f_globals["__name__"])
        name = frame.f_code.co_name
    except Exception:  # noqa: BLE001 - a task or coroutine class of the user's own may have none of it
        return False
    return module.partition(".")[0] in _NOTEBOOKS or name == _TOP_LEVEL


def name_of(task: Any) -> str:
    """Return the task's name as its library shows it; never raises."""
    try:
        get_name = getattr(task, "get_name", None)
        return str(get_name() if get_name is not None else task.name)
    except Exception:  # noqa: BLE001 - a task class of the user's own may raise anything
        return type(task).__name__
