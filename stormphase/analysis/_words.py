"""How numbers, ranks and paths are said in sentences, harmlessly whatever a file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from stormphase._record import finite
from stormphase._table import printable

SEPARATOR: Final = " / "
MAX_NAME: Final = 60
MAX_PATH: Final = 160
MAX_MESSAGE: Final = 200
_MAX_NAMES: Final = MAX_PATH // len(SEPARATOR) + 2
MAX_RUNS: Final = 8
_MAX_DEPTH: Final = 16
_MAX_BITS: Final = 1_024
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


def span(ns: float) -> str:
    """Return a duration in words: `850 us`, `12.3 ms`, `1.23 s`, `312 s`, `3h12m`, `2d03h`."""
    if ns <= 0:
        return "-" + span(-ns) if ns else "0 s"
    for limit, unit, size in ((1e6, "us", 1e3), (1e9, "ms", 1e6), (1e13, "s", 1e9)):
        value = ns / size
        if ns < limit * 0.9995:
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f} {unit}"
    hours, minutes = divmod(round(ns / 60e9), 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d{hours % 24:02}h"  # noqa: PLR2004 - two digits


def shown(text: str, most: int = MAX_NAME) -> str:
    """Return text as a terminal may have it: no control characters, one line, at most `most` characters."""
    # Bounded before and after: a name may be megabytes of marks, of which few are kept.
    clean = printable(text[: 4 * most])
    return clean if len(clean) <= most and len(text) <= 4 * most else clean[: most - 1] + _ELLIPSIS


def path_text(path: Iterable[str]) -> str:
    """Return a path as people read it, `train / step / forward`; of a long one the end, which says most."""
    # Names may be empty, and still so many of them are more than is shown.
    text = SEPARATOR.join(shown(name) for name in tuple(path)[-_MAX_NAMES:])
    return text if len(text) <= MAX_PATH else _ELLIPSIS + text[1 - MAX_PATH :]


def ranks_text(ranks: Iterable[int]) -> str:
    """Return sorted ranks with runs folded, `0-16, 18-62`, and an ellipsis where there are too many runs."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:MAX_RUNS]]
    return ", ".join(words) + (f", {_ELLIPSIS}" if len(runs) > MAX_RUNS else "")


def counted(count: int, noun: str) -> str:
    """Return `1 rank`, `2 ranks`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it: string keys, finite numbers, bounded depth; what JSON lacks becomes text."""
    if depth > _MAX_DEPTH:
        return _ELLIPSIS
    if isinstance(value, Mapping):
        return {_key(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return hex(value)
    return value if isinstance(value, (str, int)) or value is None else repr(value)[:MAX_MESSAGE]


def _key(key: object) -> str:
    return key if isinstance(key, str) else repr(key)[:MAX_NAME]
