"""Records as rows and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import MAX_SEQUENCE, OutputLine, PhaseRecord, RecordKind, dumps
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
    + f" FROM stored_record r JOIN stored_owner o ON o.id = r.id >> {SEQUENCE_BITS}"
    " JOIN stored_path p ON p.id = r.path_id"
)


loads = json.loads


def owner_of(record: PhaseRecord) -> Owner:
    """Return what the rows of one process share, as `OWNER_COLUMNS` has it."""
    process = record.process
    shared = (record.session_id, record.session_attempt, record.rank, record.correlation_id)
    if process is None:
        return (*shared, None, None, None, None, None)
    return (*shared, process.host, process.boot_id, process.pid, process.started, process.pid_namespace)


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
        record.reason,
        record.evidence,
        record.entered_ns,
        record.ended_ns,
        record.entered_monotonic_ns,
        record.ended_monotonic_ns,
        record.self_ns,
        record.paused_ns,
        record.thread_id,
        record.thread_name,
        record.task_name,
        record.is_sync,
        dumps(record.attributes) if record.attributes else None,
        record.error_type,
        record.error_message,
        record.traceback,
        record.root_cause_scope_id,
        None if cause_path is None else dumps(cause_path),
    )


def record_of_row(row: Sequence[Any], output: tuple[OutputLine, ...]) -> PhaseRecord:
    """Return the record of a row that `SELECT` gave.

    Raises:
        ValueError: if the row says what no record can say.
    """
    values = dict(zip(RECORD_COLUMNS, row[1:], strict=False))
    session_id, session_attempt, rank, correlation_id, host, boot_id, pid, started, namespace = row[
        -len(OWNER_COLUMNS) :
    ]
    values["path"] = tuple(json.loads(values.pop("path_id")))
    values["kind"] = _KINDS[values["kind"]]
    values["status"] = _STATUSES[values["status"]]
    values["is_sync"] = bool(values["is_sync"])
    values["attributes"] = {} if values["attributes"] is None else json.loads(values["attributes"])
    if type(values["step"]) is str:
        values["step"] = int(values["step"])
    if values["root_cause_path"] is not None:
        values["root_cause_path"] = tuple(json.loads(values["root_cause_path"]))
    process = None
    if host is not None:
        process = ProcessIdentity(host=host, boot_id=boot_id, pid=pid, started=started, pid_namespace=namespace)
    return PhaseRecord(
        session_id=session_id,
        session_attempt=session_attempt,
        correlation_id=correlation_id,
        rank=rank,
        sequence=row[0] & MAX_SEQUENCE,
        process=process,
        output=output,
        **values,
    )
