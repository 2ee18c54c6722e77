"""The command `stormphase`: one subcommand a module, each with `add_parser(subparsers)` and `run(arguments) -> int`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from stormphase._version import __version__
from stormphase.cli import _postmortem, _records, _recover, _top
from stormphase.exceptions import StormphaseError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = (_postmortem, _recover, _top, _records)
EXIT_USAGE: Final = 2
_EXIT_INTERRUPTED: Final = 130  # as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; errors of ours are one line on stderr, and 2.

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
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except StormphaseError as error:
        sys.stderr.write(f"stormphase: {error}\n".encode(errors="replace").decode())
        return EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has read enough. Python would complain of what it cannot flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USAGE
    return code
