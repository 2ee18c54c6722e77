"""The command `stormphase`: one subcommand a module, each with `add_parser(subparsers)` and `run(arguments) -> int`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Final

from stormphase._version import __version__
from stormphase.cli import _postmortem, _records, _recover, _top
from stormphase.cli._exit_codes import INTERRUPTED, USAGE
from stormphase.exceptions import StormphaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NEW_OBJECTS: Final = 50_000
COMMANDS: Final = (_postmortem, _recover, _top, _records)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; errors of ours, and of the stream, are one line on stderr, and 2.

    Args:
        arguments: the command line after the program's name; that of this process if not given.
    """
    parser = argparse.ArgumentParser(
        prog="stormphase", description="Which phase every rank of a training job is in, since when, and how each ended."
    )
    parser.add_argument("--version", action="version", version=f"stormphase {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers).set_defaults(run=command.run)
    parsed = parser.parse_args(arguments)
    if sys.stdout is None:  # closed by the shell: the exit code still tells
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
    try:
        with _collecting_seldom():
            code: int = parsed.run(parsed)
        sys.stdout.flush()
    except StormphaseError as error:
        _complain(str(error))
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Python would complain of what it cannot flush at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough.
            _complain(f"{error}. Check that there is room, and that the output can be written.")
        return USAGE
    return code


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Have the garbage collector look at many new objects at a time: a journal makes a hundred thousand, all kept."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _NEW_OBJECTS) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _complain(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"stormphase: {text}\n".encode(errors="replace").decode())
