"""Records as rows and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import MAX_SEQUENCE, OutputLine, PhaseRecord, RecordKind, dumps
from stormphase.exceptions import StoreError
from stormphase.stores._sqlite_schema import OWNER_COLUMNS, RECORD_COLUMNS, SEQUENCE_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Owner: TypeAlias = tuple[Any, ...]

_MAX_INT: Final = (1 << 63) - 1
_STATUSES: Final = {status.value: status for status in PhaseStatus}
_KINDS: Final = {kind.value: kind for kind in RecordKind}

# What `record_of_row` reads: the row's id, the record's columns with its path spelt out, then the owner's.
SELECT: Final = (
    "SELECT r.id, "
    + ", ".join("p.names" if column == "path_id" else f"r.{column}" for column in RECORD_COLUMNS)
    + ", "
    + ", ".join(f"o.{column}" for column in OWNER_COLUMNS)
    # A row whose process or path has gone is one too, that is no record.
    + f" FROM stored_record r LEFT JOIN stored_owner o ON o.id = r.id >> {SEQUENCE_BITS}"
    " LEFT JOIN stored_path p ON p.id = r.path_id"
)

# What SQLite must have found in the columns that `SELECT` gives, so that a row makes a record; a crafted or damaged
# file may have anything anywhere, as its columns' types bind nobody.
_NONE: Final[frozenset[type]] = frozenset({type(None)})
_TEXTS: Final[frozenset[type]] = frozenset({str})
_NUMBERS: Final[frozenset[type]] = frozenset({int})
_NUMBER_COLUMNS: Final = frozenset(
    {
        "attempt",
        "entered_ns",
        "ended_ns",
        "entered_monotonic_ns",
        "ended_monotonic_ns",
        "self_ns",
        "paused_ns",
        "thread_id",
        "is_sync",
        "is_output_known",
        "session_attempt",
        "rank",
        "pid",
        "pid_started",
        "pid_namespace",
    }
)
_NEVER_NULL: Final = frozenset(
    {
        "kind",
        "scope_id",
        "path_id",
        "attempt",
        "status",
        "entered_ns",
        "is_sync",
        "is_output_known",
        "session_id",
        "session_attempt",
    }
)


def _types_of(column: str) -> frozenset[type]:
    found = _NUMBERS if column in _NUMBER_COLUMNS else _TEXTS
    if column == "step":
        found = _NUMBERS | _TEXTS
    return found if column in _NEVER_NULL else found | _NONE


_ALLOWED: Final = tuple(map(_types_of, ("attempt", *RECORD_COLUMNS, *OWNER_COLUMNS)))  # a row's id is a number, too
# Columns that come from other tables, where they are never null.
_ELSEWHERE: Final = {"path_id": "the path", "session_id": "the process"}
_known_types: Final[set[tuple[type, ...]]] = set()
_MAX_KNOWN: Final = 4_096


class WrongRowError(ValueError):
    """A row says what no record can say: the file is damaged, or somebody else has written into it."""


@attrs.frozen(kw_only=True)
class UnreadableRows:
    """Rows of a database that are no records, and were passed over.

    Attributes:
        file: the database.
        count: how many there were in what was asked for.
        error: what is wrong with the first, and what can be done.
    """

    file: Path
    count: int
    error: StoreError

    @classmethod
    def of(cls, file: Path, count: int, first: WrongRowError) -> UnreadableRows:
        """Put it into words."""
        rows = "1 row is no record and was" if count == 1 else f"{count:,} rows are no records and were"
        error = StoreError(
            f"In the store {file} {rows} passed over: {first}.",
            path=str(file),
            fix="The file is damaged, or another program has written into it.",
        )
        return cls(file=file, count=count, error=error)


def sound(text: str | None) -> str | None:
    """Return a text that SQLite can hold: half of a surrogate pair, as a thread's name may have, becomes its escape."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def loads(text: str) -> Any:
    """Return what a JSON text of the file's says.

    Raises:
        WrongRowError: if it is none.
    """
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongRowError(f"a row of it is no record ({type(error).__name__}: {error})") from None


def names_of(text: str) -> tuple[str, ...]:
    """Return the names in a path of the file's.

    Raises:
        WrongRowError: if it has none.
    """
    names = loads(text)
    if type(names) is not list or not _TEXTS.issuperset(map(type, names)):
        raise WrongRowError("a path in it is no list of names")
    return tuple(names)


def process_of(row: Sequence[Any]) -> ProcessIdentity | None:
    """Return the process that `host`, `boot_id`, `pid`, `pid_started` and `pid_namespace` tell of, or None.

    Raises:
        WrongRowError: if those are no process's.
    """
    host, boot_id, pid, started, namespace = row
    if host is None:
        return None
    if type(pid) is not int or pid < 0:
        raise WrongRowError("a process in it has no number")
    return ProcessIdentity(host=host, boot_id=boot_id, pid=pid, started=started, pid_namespace=namespace)


def owner_of(record: PhaseRecord) -> Owner:
    """Return what the rows of one process share, as `OWNER_COLUMNS` has it."""
    process = record.process
    shared = (sound(record.session_id), record.session_attempt, record.rank, sound(record.correlation_id))
    if process is None:
        return (*shared, None, None, None, None, None)
    return (*shared, sound(process.host), process.boot_id, process.pid, process.started, process.pid_namespace)


def row_of(record: PhaseRecord, owner_id: int, path_id: int) -> tuple[Any, ...]:
    """Return a record's row: its id, then `RECORD_COLUMNS`."""
    step = record.step
    cause_path = record.root_cause_path
    return (
        owner_id << SEQUENCE_BITS | record.sequence,
        record.kind._value_,
        record.scope_id,
        record.parent_scope_id,
        path_id,
        record.attempt,
        record.retry_of_scope_id,
        step if step is None or -_MAX_INT <= step <= _MAX_INT else str(step),
        record.status._value_,
        sound(record.reason),
        sound(record.evidence),
        record.entered_ns,
        record.ended_ns,
        record.entered_monotonic_ns,
        record.ended_monotonic_ns,
        record.self_ns,
        record.paused_ns,
        record.thread_id,
        sound(record.thread_name),
        sound(record.task_name),
        record.is_sync,
        # In JSON the escape is what it stands for, so nothing of these is changed.
        sound(dumps(record.attributes)) if record.attributes else None,
        sound(record.error_type),
        sound(record.error_message),
        sound(record.traceback),
        record.root_cause_scope_id,
        None if cause_path is None else sound(dumps(cause_path)),
        record.output is not None,
    )


def record_of_row(row: Sequence[Any], output: tuple[OutputLine, ...] | WrongRowError) -> PhaseRecord:
    """Return the record of a row that `SELECT` gave, with its output, or what is wrong with that.

    Raises:
        WrongRowError: if the row says what no record can say.
    """
    if isinstance(output, WrongRowError):
        raise output
    types = tuple(map(type, row))
    if types not in _known_types:
        _check_types(types)
    values = dict(zip(RECORD_COLUMNS, row[1:], strict=False))
    session_id, session_attempt, rank, correlation_id, *process = row[-len(OWNER_COLUMNS) :]
    values["path"] = names_of(values.pop("path_id"))
    values["is_sync"] = bool(values["is_sync"])
    if values["root_cause_path"] is not None:
        values["root_cause_path"] = names_of(values["root_cause_path"])
    attributes = values["attributes"] = {} if values["attributes"] is None else loads(values["attributes"])
    try:
        values["kind"] = _KINDS[values["kind"]]
        values["status"] = _STATUSES[values["status"]]
        if type(values["step"]) is str:
            values["step"] = int(values["step"])
    except (KeyError, ValueError) as error:
        raise WrongRowError(f"a row of it is no record ({type(error).__name__}: {error})") from None
    if type(attributes) is not dict:
        raise WrongRowError("the attributes in a row of it are no object")
    return PhaseRecord(
        session_id=session_id,
        session_attempt=session_attempt,
        correlation_id=correlation_id,
        rank=rank,
        sequence=row[0] & MAX_SEQUENCE,
        process=process_of(process),
        output=output if values.pop("is_output_known") or output else None,
        **values,
    )


def _check_types(types: tuple[type, ...]) -> None:
    for column, found, allowed in zip(("id", *RECORD_COLUMNS, *OWNER_COLUMNS), types, _ALLOWED, strict=True):
        if found not in allowed:
            if column in _ELSEWHERE and found is type(None):
                raise WrongRowError(f"{_ELSEWHERE[column]} that a row in it refers to is missing")
            raise WrongRowError(f"the column {column} of a row in it holds {found.__name__}")
    if len(_known_types) < _MAX_KNOWN:
        _known_types.add(types)
