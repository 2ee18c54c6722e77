"""How records are written: one at a time, so that a week of them needs no more memory than a minute."""

from __future__ import annotations

import csv
import datetime as dt
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stormphase._derived_ids import rank_span_id
from stormphase._ids import to_hex
from stormphase._model import PhaseStatus
from stormphase._record import FIELDS, RecordKind, dumps_ascii
from stormphase._table import printable
from stormphase._terminal import StreamFacts
from stormphase.analysis._words import shown, span
from stormphase.cli._output import DIM, GREEN, RED, YELLOW, Page
from stormphase.cli._record_texts import RecordTexts
from stormphase.exceptions import ConfigurationError
from stormphase.records import to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import TextIO

    from stormphase._record import PhaseRecord

_PAGE_LINES: Final = 200
_MAX_PATH: Final = 100
_MAX_NAMES: Final = _MAX_PATH // len(" / ") + 2
_MAX_MESSAGE: Final = 300
_STYLES: Final = {
    PhaseStatus.FAILED: RED,
    PhaseStatus.LOST: RED,
    PhaseStatus.CANCELLED: YELLOW,
    PhaseStatus.ABANDONED: YELLOW,
    PhaseStatus.ACTIVE: GREEN,
    PhaseStatus.PAUSED: GREEN,
}
# What a spreadsheet takes for a formula when a text begins with it.
_FORMULA: Final = ("=", "+", "-", "@")


def write_json(records: Iterable[PhaseRecord], stream: TextIO) -> None:
    """Write a list of objects with `PhaseRecord`'s names, one a line; ASCII, so that no terminal obeys a name."""
    opening = "["
    texts = RecordTexts()
    for record in records:
        stream.write(f"{opening}\n{texts.text(record)}")
        opening = ","
    stream.write("[]\n" if opening == "[" else "\n]\n")


def write_csv(records: Iterable[PhaseRecord], stream: TextIO) -> None:
    """Write a row a record: paths as people read them, attributes, process and output as JSON.

    Control characters are escaped, and a text that a spreadsheet would take for a formula has a ' before it.
    """
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    for record in records:
        fields = record.to_dict()
        fields["path"] = " / ".join(record.path)
        if record.root_cause_path is not None:
            fields["root_cause_path"] = " / ".join(record.root_cause_path)
        writer.writerow([_cell(fields[name]) for name in FIELDS])


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    text = printable(value) if isinstance(value, str) else dumps_ascii(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_parquet(records: Iterable[PhaseRecord], file: Path) -> None:
    """Write a Parquet file by way of an Arrow table, which holds all records in memory.

    Raises:
        ConfigurationError: if pyarrow is not installed, or the file cannot be written.
    """
    table = to_arrow(records)
    try:
        import_module("pyarrow.parquet").write_table(table, file)
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error}.", setting="--output", fix="Give another file."
        ) from None


def write_table(records: Iterable[PhaseRecord], stream: TextIO) -> None:
    """Write a line a record for people: when, how long, how it ended, where, and beneath a failure why."""
    page = Page(stream, os.environ)
    wide = StreamFacts.of(stream, os.environ).is_terminal
    count = 0
    for count, record in enumerate(records, 1):
        if count == 1:
            page.pieces([("entered (UTC)            duration  status     rank  path", DIM)])
        _write_line(page, record)
        if count % _PAGE_LINES == 0:
            page.show()
    if count == 0 and wide:
        page.line("no records", style=DIM)
    page.show()


def _write_line(page: Page, record: PhaseRecord) -> None:
    duration = "" if record.duration_ns is None else span(record.duration_ns)
    rank = "" if record.rank is None else str(record.rank)
    # A path may have thousands of names, and as many as characters fit are more than is shown.
    what = " / ".join(shown(name) for name in record.path[:_MAX_NAMES]) or record.kind.value
    extras = [
        f"step {record.step}" if record.step is not None else "",
        f"attempt {record.attempt}" if record.attempt else "",
        f"session {shown(record.session_id)}" if not record.path else "",
        f"restart {record.session_attempt}" if record.session_attempt and not record.path else "",
    ]
    suffix = "".join(f"  {extra}" for extra in extras if extra)
    status = record.status
    page.pieces(
        [
            (f"{_moment(record.entered_ns)}  {duration:>8}  ", ""),
            (f"{status.value:<9}", _STYLES.get(status, "")),
            (f"  {rank:>4}  {shown(what, _MAX_PATH)}", ""),
            (suffix, DIM),
        ]
    )
    for text in _reasons(record):
        page.wrapped(shown(text, _MAX_MESSAGE), first="    ", indent="      ", style=_STYLES.get(status, ""))


def _reasons(record: PhaseRecord) -> list[str]:
    found = []
    if record.error_type is not None:
        message = f": {record.error_message}" if record.error_message else ""
        found.append(f"{record.error_type}{message}")
    if record.root_cause_scope_id not in (None, record.scope_id):
        found.append(f"first arose in {_where(record)}")
    found += [text for text in (record.reason, record.evidence) if text]
    if record.kind is RecordKind.PROCESS and record.status is PhaseStatus.LOST and record.root_cause_scope_id is None:
        found.append("nothing is known to have been open in it: pools end their workers like that")
    # The traceback says again what stands above.
    said = [line.text for line in record.output or () if line.stream != "traceback"]
    if record.status in (PhaseStatus.FAILED, PhaseStatus.LOST) and said:
        found.append(f"last said: {said[-1]}")
    return found


def _where(record: PhaseRecord) -> str:
    """Return where a failure first arose: in a phase, in none of its rank's, or in what has only an id here."""
    if record.root_cause_path:
        return " / ".join(record.root_cause_path[:_MAX_MESSAGE])
    rank = record.rank or 0  # The session's record has none: it is told by rank 0.
    if record.root_cause_scope_id == to_hex(rank_span_id(record.session_id, record.session_attempt, rank)):
        return f"rank {rank}, in no phase"
    return f"scope {record.root_cause_scope_id}"


def _moment(wall_ns: int) -> str:
    """Return a wall time to the millisecond; whatever a damaged file says, it never raises."""
    try:
        moment = dt.datetime.fromtimestamp(wall_ns // 1_000_000_000, tz=dt.UTC)
    except (OverflowError, OSError, ValueError):
        return f"{wall_ns} ns"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{wall_ns // 1_000_000 % 1_000:03}"
