"""Asking for records: from a store or from journals, for Python, Arrow and pandas.

`read_records("runs.db", path="train/*", status="failed")` is the command `stormphase records` as a function.
"""

from __future__ import annotations

from stormphase._attribution import Attribution, Blame, Failure, attribute
from stormphase._record import OutputLine, PhaseRecord, RecordKind
from stormphase.records._read import latest_records, read_records
from stormphase.records._tables import to_arrow, to_pandas
from stormphase.stores import RecordQuery

__all__ = [
    "Attribution",
    "Blame",
    "Failure",
    "OutputLine",
    "PhaseRecord",
    "RecordKind",
    "RecordQuery",
    "attribute",
    "latest_records",
    "read_records",
    "to_arrow",
    "to_pandas",
]
