"""Records as tables: flat rows for CSV, Arrow and pandas, where each attribute is a column of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stormphase._record import FIELDS, dumps
from stormphase.exceptions import ConfigurationError
from stormphase.stores import attribute_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stormphase._record import PhaseRecord

_INTEGERS: Final = frozenset(
    {
        "schema_version",
        "session_attempt",
        "rank",
        "depth",
        "sequence",
        "attempt",
        "step",
        "entered_ns",
        "ended_ns",
        "duration_ns",
        "self_ns",
        "paused_ns",
        "entered_monotonic_ns",
        "ended_monotonic_ns",
        "thread_id",
    }
)
_MAX_INT: Final = (1 << 63) - 1


def to_arrow(records: Iterable[PhaseRecord]) -> Any:
    """Return records as a `pyarrow.Table`: `PhaseRecord`'s names, and a column `attr_KEY` for each attribute.

    Paths are lists, output is a list of structs, `process` a struct. An attribute that is everywhere of one kind keeps
    it; one that is not, or is nested, is text, JSON where it was none. Absent is null.

    Args:
        records: all of them are held in memory.

    Raises:
        ConfigurationError: if pyarrow is not installed.
    """
    pa = _pyarrow()
    rows = [_encodable(record.to_dict()) for record in records]
    columns: dict[str, Any] = {}
    for name in FIELDS:
        if name != "attributes":
            columns[name] = pa.array([_cell(name, row[name]) for row in rows], type=_type_of(pa, name))
    for name, key in attribute_columns_of(row["attributes"] for row in rows):
        columns[name] = _attribute_array(pa, [row["attributes"].get(key) for row in rows])
    return pa.table(columns)


def to_pandas(records: Iterable[PhaseRecord]) -> Any:
    """Return records as a `pandas.DataFrame`, by way of `to_arrow`; whole numbers stay whole where some are absent.

    Raises:
        ConfigurationError: if pyarrow or pandas is not installed.
    """
    table = to_arrow(records)
    try:
        pd = import_module("pandas")
    except ImportError:
        raise _missing("pandas") from None
    pa = _pyarrow()
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get)


def attribute_columns_of(attributes: Iterable[Iterable[str]]) -> list[tuple[str, str]]:
    """Return the name of a column and its key for each key that is there, in the order of their first sight."""
    keys = list(dict.fromkeys(key for each in attributes for key in each))
    names = [name for name, _ in attribute_columns(keys)]
    return list(zip(names, keys, strict=True))


def _encodable(value: Any) -> Any:
    """Return a value whose texts Arrow can hold: half of a surrogate pair becomes its escape."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value


def _cell(name: str, value: Any) -> Any:
    if name == "step" and value is not None and not -_MAX_INT <= value <= _MAX_INT:
        return None  # Arrow's integers end there.
    return value


def _type_of(pa: Any, name: str) -> Any:
    if name in _INTEGERS:
        return pa.int64()
    if name == "is_sync":
        return pa.bool_()
    if name in ("path", "root_cause_path"):
        return pa.list_(pa.string())
    if name == "process":
        whole = {"pid": pa.int64(), "started": pa.int64(), "pid_namespace": pa.int64()}
        return pa.struct([("host", pa.string()), ("boot_id", pa.string()), *whole.items()])
    if name == "output":
        return pa.list_(pa.struct([("time_ns", pa.int64()), ("stream", pa.string()), ("text", pa.string())]))
    return pa.string()


def _attribute_array(pa: Any, values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, type=pa.bool_())
    if kinds == {int}:
        return pa.array(values, type=pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
    texts = [value if value is None or type(value) is str else dumps(value) for value in values]
    return pa.array(texts, type=pa.string())


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError:
        raise _missing("pyarrow") from None


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"{package} is not installed.", setting="arrow", fix="Install it with: pip install 'stormphase[arrow]'"
    )
