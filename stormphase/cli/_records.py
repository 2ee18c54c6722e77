"""`stormphase records DB_OR_DIR`: what ran, how each ended, and why, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stormphase._clock import SystemClock
from stormphase._model import PhaseStatus
from stormphase._record import RecordKind
from stormphase.analysis._words import shown
from stormphase.cli._exit_codes import UNWELL, WELL, told
from stormphase.cli._output import YELLOW, Page
from stormphase.cli._records_out import write_csv, write_json, write_parquet, write_table
from stormphase.exceptions import ConfigurationError
from stormphase.records import RecordQuery, latest_records, read_records

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from stormphase._record import PhaseRecord
    from stormphase.journal import UnreadableJournal
    from stormphase.stores import UnreadableRows

FORMATS: Final = ("table", "json", "csv", "parquet")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_MAX_NS: Final = (1 << 63) - 1
_EXAMPLES: Final = """
examples: stormphase records runs.db --status failed; stormphase records runs/ --path 'train/*' --rank 3 --since 2h;
stormphase records runs.db --where epoch=3 --format json.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = subparsers.add_parser(
        "records",
        help="what ran, how each phase ended, and why",
        description="Read the records in the database of a SqliteStore, or in a directory of journals.",
        epilog=f"{_EXAMPLES}{told('records').capitalize()}",
    )
    parser.add_argument("source", metavar="DB_OR_DIR", type=Path, help="a database file, or a directory of journals")
    parser.add_argument(
        "--path", metavar="GLOB", help="only paths like this: 'train/*', '*/step'; without a /, the last name"
    )
    parser.add_argument(
        "--status",
        metavar="S",
        action="append",
        help=f"only these ({', '.join(PhaseStatus)}); may be given several times",
    )
    parser.add_argument(
        "--kind", metavar="K", action="append", help=f"only these ({', '.join(RecordKind)}); may be given several times"
    )
    parser.add_argument("--rank", metavar="N", type=int, help="only this rank")
    parser.add_argument("--session", metavar="ID", help="only this session")
    parser.add_argument("--attempt", metavar="N", type=int, help="only this attempt of its session")
    parser.add_argument(
        "--where",
        metavar="ATTR=VALUE",
        action="append",
        default=[],
        help="only with this attribute; all that are given",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="entered then or later: 90s, 15m, 2h, 7d ago, or ISO 8601 (UTC)"
    )
    parser.add_argument("--until", metavar="TIME", help="entered before then")
    parser.add_argument("--latest", action="store_true", help="only the newest of each path, and of each --tag")
    parser.add_argument(
        "--tag", metavar="ATTR", action="append", default=[], help="with --latest: an attribute that tells runs apart"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to write (default: %(default)s)")
    parser.add_argument("--output", "-o", metavar="FILE", type=Path, help="write there instead of to the terminal")
    parser.add_argument(
        "--as-is", action="store_true", help="do not write into a database that a dead process's phases are LOST"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the records and return the exit code.

    Raises:
        StormphaseError: if nothing can be read, or what is asked for makes no sense.
    """
    now_ns = SystemClock.wall_ns()
    wanted = RecordQuery(
        session_id=arguments.session,
        session_attempt=arguments.attempt,
        rank=arguments.rank,
        kind=arguments.kind,
        status=arguments.status,
        path=arguments.path,
        where=[_condition(text) for text in arguments.where],
        since_ns=_time_ns("--since", arguments.since, now_ns),
        until_ns=_time_ns("--until", arguments.until, now_ns),
    )
    if arguments.tag and not arguments.latest:
        raise ConfigurationError(
            "--tag tells apart what --latest shows.", setting="--tag", fix="Give --latest as well."
        )
    unreadable: list[UnreadableJournal | UnreadableRows] = []
    records = read_records(arguments.source, wanted, on_unreadable=unreadable.append, as_is=arguments.as_is)
    if arguments.latest:
        records = iter(latest_records(records, arguments.tag))
    _write(records, arguments)
    page = Page(sys.stderr, os.environ)
    for each in unreadable:
        page.wrapped(shown(str(each.error), 400), first="unreadable: ", indent="  ", style=YELLOW)
    page.show()
    return UNWELL if unreadable else WELL


def _write(records: Iterable[PhaseRecord], arguments: argparse.Namespace) -> None:
    if arguments.format == "parquet":
        if arguments.output is None:
            raise ConfigurationError(
                "Parquet is no text for a terminal.", setting="--output", fix="Give --output FILE as well."
            )
        write_parquet(records, arguments.output)
        return
    writers = {"json": write_json, "csv": write_csv, "table": write_table}
    with _stream(arguments.output) as stream:
        writers[arguments.format](records, stream)


@contextlib.contextmanager
def _stream(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        stream = output.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigurationError(
            f"{output} cannot be written: {error.strerror}.", setting="--output", fix="Give another file."
        ) from None
    with stream:
        yield stream


def _condition(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(
            f"--where needs ATTR=VALUE, not {text!a:.60}.", setting="--where", fix="Write --where epoch=3."
        )
    return key, value


def _time_ns(option: str, text: str | None, now_ns: int) -> int | None:
    """Return a time that a person gave: so long ago, or ISO 8601, in UTC unless it says otherwise."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return max(-_MAX_NS, now_ns - int(min(float(ago[1]) * _UNITS_S[ago[2]], 1e10) * 1e9))
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!a:.60} is no time.", setting=option, fix="Write 15m, 2h, 7d, or 2026-01-31T12:00:00."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
