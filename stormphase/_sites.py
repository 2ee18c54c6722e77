"""Call sites: where a phase was entered and, if that is in a small helper of the user's, from where that was called.

A helper is found out at the first sight of a name, where there is a lock anyway. Names that one enters stand in a dict
of their own, `PathNode.helped`, so that whoever enters a phase directly never looks for a caller.
"""

from __future__ import annotations

import contextlib
import functools
import opcode
import sys
import types
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from types import CodeType, FrameType

    Instruction: TypeAlias = "int | tuple[int, CodeType, int]"

MAX_HELPER_LINES: Final = 16
"""A function of more lines is no helper: its own line says enough."""

_FUNCTION: Final = 0x3  # CO_OPTIMIZED | CO_NEWLOCALS
_GIVEN_MORE: Final = 0xC  # CO_VARARGS | CO_VARKEYWORDS
_CODE_UNIT: Final = 2
_GROUPS: Final = (tuple, frozenset)


def _operations(*names: str) -> list[int]:
    return [opcode.opmap[name] for name in names if name in opcode.opmap]


# What may stand between a call and what becomes of its result, and where that then leaves the function.
_PASSED: Final = bytes(
    _operations("CACHE", "LOAD_ATTR", "LOAD_CONST", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_GLOBAL")
)
_LEAVES: Final = [bytes([each]) for each in _operations("RETURN_VALUE", "STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR")]
# Its frames stand between a generator that `contextlib.contextmanager` decorates and whoever enters it.
CONTEXTLIB: Final[str] = contextlib.contextmanager.__code__.co_filename
_STANDARD: Final = CONTEXTLIB.removesuffix("contextlib.py")
_INSTALLED: Final = ("site-packages", "dist-packages")

_getframe = sys._getframe


class _Seen:
    """What `enter_phase` reads of a frame, for a helper's."""

    __slots__ = ("f_code", "f_lasti")

    f_code: CodeType
    f_lasti: Instruction


def frame_above(levels: int) -> FrameType:
    """Return the frame so many levels above the caller's; the outermost, where a greenlet or a thread begins sooner."""
    try:
        return _getframe(levels + 1)
    except ValueError:
        frame = _getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
        return frame


def frame_of_helper(depth: int) -> _Seen:
    """Return what stands for the frame `depth` calls up, a helper's, in the place of `sys._getframe`."""
    frame = frame_above(depth + 1)
    seen = _Seen()
    seen.f_code = frame.f_code
    seen.f_lasti = through(frame)
    return seen


def through(frame: FrameType) -> Instruction:
    """Return the instruction at which a helper enters, with the code and instruction of its caller, if there is one."""
    caller = frame.f_back
    while caller is not None and caller.f_code.co_filename == CONTEXTLIB:
        caller = caller.f_back
    return frame.f_lasti if caller is None else (frame.f_lasti, caller.f_code, caller.f_lasti)


def is_told(code: CodeType, caller: CodeType) -> bool:
    """Return whether a helper's caller is named: it tells a user where in the program the helper was used.

    The code of a module or of a notebook's cell is no helper, whoever runs it; and of a helper that is the whole work
    of a thread, a task or a pool the caller is a line of the interpreter's own, which says nothing.
    """
    if code.co_flags & _FUNCTION != _FUNCTION or caller.co_filename.startswith("<frozen "):
        return False
    own = caller.co_filename.removeprefix(_STANDARD)
    return own == caller.co_filename or own.startswith(_INSTALLED)


def file_named(path: str) -> str:
    """Return a file's name without its folder, or what IPython calls that cell of a notebook."""
    get_shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if get_shell is not None:
        with contextlib.suppress(Exception):  # No shell runs here, it is no cell, or IPython is one of another kind.
            return str(get_shell().compile.format_code_name(path)[1])
    return path.rpartition("/")[2]


def is_helper_s(name: object) -> bool:
    """Return whether a name is entered, for the first time, by a small helper of the user's.

    That is a short function which is given the name, or whose phase is another's to end: returned, or kept beyond it.
    """
    frame = _getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "stormphase":
        frame = frame.f_back
    code = frame.f_code
    if code.co_flags & _FUNCTION != _FUNCTION or not _is_short(code):
        return False
    return _is_given(name, frame) or _leaves(code, frame.f_lasti)


# No generators from here on: one that a signal handler's exception finds half-way complains when it is freed.


def _is_short(code: CodeType) -> bool:
    last = code.co_firstlineno
    for _, _, line in code.co_lines():
        if line is not None and line > last:
            last = line
    return last - code.co_firstlineno < MAX_HELPER_LINES


def _is_given(name: object, frame: FrameType) -> bool:
    """Return whether a name comes from outside of the function that enters it: it is no constant that the code names.

    Locals are not looked at: CPython would keep a copy of them for as long as the function runs.
    """
    code = frame.f_code
    if not isinstance(name, str) or not _is_given_something(code):
        return False
    numbered = name.rstrip("0123456789")  # f"epoch {number}" is a constant of the code, too
    for constant in code.co_consts:
        if (type(constant) is str and constant in (name, numbered)) or (type(constant) in _GROUPS and name in constant):
            return False
    for known in code.co_names:
        value = frame.f_globals.get(known)
        if type(value) is types.ModuleType or isinstance(value, type):
            for attribute in code.co_names:
                if _is_text(vars(value).get(attribute), name):
                    return False
        elif _is_text(value, name):
            return False
    return True


def _is_given_something(code: CodeType) -> bool:
    """Return whether a function has arguments, or names of the function in which it stands, as a decorator's has."""
    return bool(code.co_argcount or code.co_kwonlyargcount or code.co_flags & _GIVEN_MORE or code.co_freevars)


def _is_text(value: object, text: str) -> bool:
    return isinstance(value, str) and str.__eq__(value, text)


def _leaves(code: CodeType, instruction: int) -> bool:
    """Return whether what the call at `instruction` returns is returned, or kept where others find it.

    False where this interpreter lays out its instructions otherwise than is known here: then no caller is named.
    """
    return _is_layout_known() and _is_followed_by_leaving(code, instruction)


def _is_followed_by_leaving(code: CodeType, instruction: int) -> bool:
    following = code.co_code[instruction + _CODE_UNIT :: _CODE_UNIT].lstrip(_PASSED)
    return following[:1] in _LEAVES


@functools.cache
def _is_layout_known() -> bool:
    """Return whether functions of which it is known what they do with a call's result are read as doing that.

    Instructions are no documented interface, and any version may change them: so what is read out of them is tried on
    this interpreter once, and not looked up by its version.
    """
    found = []

    def look() -> types.SimpleNamespace:
        frame = _getframe(1)
        found.append(_is_followed_by_leaving(frame.f_code, frame.f_lasti))
        return place

    place = types.SimpleNamespace(look=look)
    try:
        for use in (_return_it, _return_what_a_method_returns, _keep_it, _use_it, _name_it):
            use(place)
    except Exception:  # noqa: BLE001 - instructions that are nothing like ours
        return False
    return found == [True, True, True, False, False]


def _return_it(place: Any) -> Any:
    look = place.look
    return look()


def _return_what_a_method_returns(place: Any) -> Any:
    return place.look()


def _keep_it(place: Any) -> None:
    place.kept = place.look()


def _use_it(place: Any) -> None:
    if place.look():  # pragma: no branch - what it returns is always true
        return


def _name_it(place: Any) -> Any:
    found = place.look()
    return found.look
