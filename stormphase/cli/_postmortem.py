"""`stormphase postmortem DIR`: what every rank was doing, since when, and why it stopped."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._clock import SystemClock
from stormphase.analysis._places import DEFAULT_HANG_NS, SECOND_NS
from stormphase.analysis._postmortem import Postmortem, diagnose, group_to_dict, rank_to_dict, suspect_to_dict
from stormphase.analysis._ranks import ProcessReport
from stormphase.analysis._words import counted, ranks_text, shown
from stormphase.cli._exit_codes import UNWELL, WELL, told
from stormphase.cli._journals import Selection, read_reports, select
from stormphase.cli._output import DIM, YELLOW, Page, seconds
from stormphase.cli._postmortem_text import write_postmortem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from stormphase.journal._read import UnreadableJournal

_MAX_UNREADABLE: Final = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = subparsers.add_parser(
        "postmortem",
        help="what every rank was doing, since when, and why it stopped",
        description="Read the journals of a job, running or dead, and say which rank the others wait for.",
        epilog=told("postmortem"),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="what was given as `journal` or STORMPHASE_DIR")
    parser.add_argument("--json", action="store_true", help="all that is known, in JSON")
    parser.add_argument("--session", metavar="ID", help="another session than the newest in DIR")
    parser.add_argument("--attempt", metavar="N", type=int, help="another attempt than the session's newest")
    parser.add_argument(
        "--rank", metavar="N", type=int, action="append", help="show this rank in detail; may be given several times"
    )
    parser.add_argument(
        "--hang-s",
        metavar="S",
        type=seconds,
        default=DEFAULT_HANG_NS / SECOND_NS,
        help="how long ranks may wait for each other where it is not known what is usual (default: %(default)g s)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the postmortem and return the exit code.

    Raises:
        StormphaseError: if no journal can be read.
    """
    clock = SystemClock()
    selection = select(arguments.directory, session_id=arguments.session, attempt=arguments.attempt)
    unreadable = list(selection.unreadable)
    processes: list[ProcessReport] = []
    for found in read_reports((*selection.files, *selection.stray_files), clock):
        if isinstance(found, ProcessReport):
            processes.append(attrs.evolve(found, identity=attrs.evolve(found.identity, attempt=selection.attempt)))
        else:
            unreadable.append(found)
    if not processes:
        raise unreadable[0].error
    hang_ns = int(arguments.hang_s * SECOND_NS)
    postmortem = diagnose(processes, other_attempts=selection.other_attempts, hang_ns=hang_ns)
    if arguments.json:
        write_json(sys.stdout, postmortem, selection, unreadable)
    else:
        page = Page(sys.stdout, os.environ)
        write_postmortem(page, postmortem, clock.wall_ns(), arguments.rank)
        _write_rest(page, selection, unreadable)
        page.show()
    return WELL if postmortem.is_well and not unreadable else UNWELL


def write_json(
    stream: TextIO, postmortem: Postmortem, selection: Selection, unreadable: Sequence[UnreadableJournal]
) -> None:
    """Write one object, its keys sorted, one rank a line; ASCII, so that no terminal takes a name for a command."""
    members: dict[str, Any] = {
        "absent_ranks": list(postmortem.absent),
        "attempt": postmortem.attempt,
        "groups": [group_to_dict(group) for group in postmortem.groups],
        "is_hung": postmortem.is_hung,
        "newer_attempts": list(postmortem.newer_attempts),
        "notes": list(postmortem.notes),
        "older_attempts": list(postmortem.older_attempts),
        "other_sessions": list(selection.other_sessions),
        "ranks_of_attempt_before": list(selection.stray_ranks),
        "ranks": (rank_to_dict(rank) for rank in postmortem.ranks),
        "session_id": postmortem.session_id,
        "suspects": [suspect_to_dict(suspect) for suspect in postmortem.suspects],
        "unreadable": [
            {"file": str(each.file), "problem": each.error.problem}
            for each in (*unreadable, *selection.unreadable_others)
        ],
        "verdict": postmortem.verdict.to_dict(),
        "world_size": postmortem.world_size,
    }
    stream.write("{")
    for index, name in enumerate(sorted(members)):
        stream.write(f"{',' * bool(index)}\n{json.dumps(name)}: ")
        stream.writelines(_pieces(members[name]))
    stream.write("\n}\n")


def _pieces(value: Any) -> Iterator[str]:
    """Yield the JSON of a value; of a list its elements one by one, since a job's are many megabytes."""
    if isinstance(value, (str, int, dict)):
        yield json.dumps(value, sort_keys=True, allow_nan=False)
        return
    opening = "["
    for each in value:
        yield f"{opening}\n  {json.dumps(each, sort_keys=True, allow_nan=False)}"
        opening = ","
    yield "[]" if opening == "[" else "\n]"


def _write_rest(page: Page, selection: Selection, unreadable: Sequence[UnreadableJournal]) -> None:
    if selection.stray_ranks:
        text = (
            f"of the attempt before: {ranks_text(selection.stray_ranks)}, launched with these and not begun with them"
        )
        page.wrapped(text, first="  ", indent="    ", style=DIM)
    for each in unreadable[:_MAX_UNREADABLE]:
        page.wrapped(shown(str(each.error), 400), first="  unreadable: ", indent="    ", style=YELLOW)
    if len(unreadable) > _MAX_UNREADABLE:
        page.line(f"  and {len(unreadable) - _MAX_UNREADABLE:,} journals more that cannot be read", style=YELLOW)
    if selection.unreadable_others:
        page.line(f"  {counted(len(selection.unreadable_others), 'journal')} of other sessions unreadable", style=DIM)
    if selection.other_sessions:
        others = ", ".join(shown(each) for each in selection.other_sessions[:_MAX_UNREADABLE])
        more = len(selection.other_sessions) - _MAX_UNREADABLE
        page.line()
        page.wrapped(f"other sessions here: {others}{f' and {more:,} more' if more > 0 else ''} (--session)", style=DIM)
