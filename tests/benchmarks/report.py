"""Writes what was measured as one Markdown page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from budgets import BUDGETS, PURE, verdict
from panels import PANELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from budgets import Budget, Found

COMMAND = "python tests/benchmarks/run.py"

RULES = """\
Every ratio is of two figures of one process, measured in turns: the best of many short samples each, while the other
is quiet and has delivered all it had. Deliveries are counted at the exporter; where a count is not exact, there is no
figure. The floor is a `with` on an empty slotted context manager made anew each time. A figure of the *training thread*
is wall time between enter and exit; what the background does for it is in the *CPU* rows, which count all threads until
the last span has reached the exporter. Where the ratio of medians is far from that of the best, the machine was busy;
how far `at the root` and `depth 1` lie apart, which are one thing in two processes, is how far a figure may be trusted.
"""


@dataclass(frozen=True)
class Run:
    """All figures of one CPython.

    Attributes:
        python: its version.
        packages: versions by name.
        found: by panel, by subject.
        failed: panels that found nothing, because they failed.
    """

    python: str
    packages: Mapping[str, str]
    found: Found
    failed: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All that the page tells.

    Attributes:
        machine: in one line.
        load: how busy it was, in one line.
        date: ISO 8601.
        command: what measures the same again.
        runs: one for each CPython.
    """

    machine: str
    load: str
    date: str
    command: str
    runs: Sequence[Run]

    def to_json(self) -> str:
        """Return it for `of_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def of_json(cls, text: str) -> Page:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "runs": [Run(**run) for run in fields["runs"]]})


def render(page: Page) -> str:
    """Return the page as Markdown."""
    runs = page.runs
    parts = [
        "# What stormphase costs, and what its peers cost",
        f"Written by `{page.command}` on {page.date}. Machine: {page.machine}; {page.load}.",
        RULES.rstrip(),
        "## Budgets",
        _budgets(runs, BUDGETS),
        "## In Python alone, where there is no C compiler (docs/decisions.md, 22)",
        _budgets(runs, PURE),
        "## One enter + exit on the training thread, in multiples of the floor",
        _ratios(runs),
        "## CPU of the whole process per span, delivered",
        _cpu(runs),
        "## Other figures",
        _others(runs),
        "## Versions",
        _versions(runs),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _budgets(runs: Sequence[Run], budgets: Sequence[Budget]) -> str:
    rows = []
    for budget in budgets:
        figures = {run.python: figure for run in runs if (figure := _figure(budget.figure, run)) is not None}
        cells = [_short(figures[run.python]) if run.python in figures else "" for run in runs]
        rows.append([budget.what, f"<= {_short(budget.limit)} {budget.unit}", *cells, verdict(budget, figures)])
    return table(["per enter + exit", "budget", *(run.python for run in runs), "verdict"], rows)


def _figure(read: Any, run: Run) -> float | None:
    try:
        return float(read(run.found))
    except KeyError:
        return None


def _ratios(runs: Sequence[Run]) -> str:
    columns = [_cost_column(run) for run in runs]
    names = sorted({name for column in columns for name in column}, key=lambda name: columns[0].get(name, [0.0])[0])
    header = ["system"]
    for run in runs:
        header += [f"x floor, {run.python}", "of medians", "ns"]
    rows = [
        [
            name,
            *(
                cell
                for column in columns
                for cell in ([_short(value) for value in column[name]] if name in column else ["", "", ""])
            ),
        ]
        for name in names
    ]
    return table(header, rows)


def _cost_column(run: Run) -> dict[str, list[float]]:
    column: dict[str, list[float]] = {}
    for panel, subjects in run.found.items():
        if PANELS[panel].kind != "cost":
            continue
        floor = subjects.get("floor")
        if floor is None or panel == "threads":
            continue
        for name, cost in subjects.items():
            ratios = [
                cost["best_ns"] / floor["best_ns"],
                cost["median_ns"] / floor["median_ns"],
                cost["best_ns"],
            ]
            if name.startswith("stormphase") and panel.endswith("_pure"):
                name = f"{name}, in Python alone"  # noqa: PLW2901
            if name != "floor" or "floor" not in column or cost["best_ns"] < column["floor"][2]:
                column[name] = ratios
    return column


def _cpu(runs: Sequence[Run]) -> str:
    header = ["system"]
    for run in runs:
        header += [f"us, {run.python}", "operations", "arrived"]
    names = [name for panel, subjects in runs[0].found.items() if PANELS[panel].kind == "cpu" for name in subjects]
    rows = []
    for name in names:
        row = [name]
        for run in runs:
            cost = _subject(run, "cpu", name)
            row += [f"{cost['best_ns'] / 1000:.1f}", f"{cost['operation_count']:,}", f"{cost['delivered']:,}"]
        rows.append(row)
    return table(header, rows)


def _subject(run: Run, kind: str, name: str) -> Mapping[str, Any]:
    return next(
        subjects[name] for panel, subjects in run.found.items() if PANELS[panel].kind == kind and name in subjects
    )


def _others(runs: Sequence[Run]) -> str:
    return table(["what", "CPython", "figure"], [row for run in runs for row in _other_rows(run)])


def _other_rows(run: Run) -> Iterator[list[str]]:
    for panel in ("tail", "tail_journal"):
        for name, tail in run.found.get(panel, {}).items():
            yield [name, run.python, f"p50 {tail['p50_ns'] / 1e6:.2f} ms, p99 {tail['p99_ns'] / 1e6:.2f} ms"]
    for name, cost in run.found.get("threads", {}).items():
        yield [name, run.python, f"{cost['best_ns']:.0f} ns"]
    for panel in ("growth", "growth_journal"):
        for name, grown in run.found.get(panel, {}).items():
            told = f"{grown['first_ratio']:.2f} x floor, {grown['last_ratio']:.2f} after {grown['operation_count']:,}"
            yield [name, run.python, f"{told}; {grown['grown_bytes'] / 1024:+.0f} KiB"]
    for name, cost in run.found.get("imports", {}).items():
        yield [f"import {name}", run.python, f"{cost['best_ns'] / 1e6:.1f} ms"]


def _versions(runs: Sequence[Run]) -> str:
    names = sorted({name for run in runs for name in run.packages})
    return table(
        ["package", *(f"CPython {run.python}" for run in runs)],
        [[name, *(run.packages.get(name, "") for run in runs)] for name in names],
    )


def _short(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
