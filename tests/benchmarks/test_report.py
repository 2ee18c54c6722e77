"""The page of results: what is held, what is missed and why, and what was not measured."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def budgets(monkeypatch):
    """Benchmarks are scripts of one folder, which is on the path of this test only."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    module = importlib.import_module("budgets")
    monkeypatch.setattr(module, "REASONS", {"root": "the reason"})
    return module


@pytest.fixture
def report(budgets):
    """The page's renderer, beside its budgets."""
    return importlib.import_module("report")


def found(*, root_ns):
    """What one panel may have found."""
    cost = {"median_ns": 120.0, "batch_count": 1, "operation_count": 1, "delivered": 0}
    return {"local": {"floor": {**cost, "best_ns": 100.0}, "stormphase, at the root": {**cost, "best_ns": root_ns}}}


def a_page(report, **figures):
    """What a run found with the given figures at the root, by version of CPython."""
    runs = [
        report.Run(python=name.removeprefix("py").replace("_", "."), packages={"attrs": "1.2"}, found=found(root_ns=ns))
        for name, ns in figures.items()
    ]
    return report.Page(runs=runs, machine="a machine", load="no load", date="2020-01-02", command="a command")


def page_of(report, **figures):
    """The same as Markdown."""
    return report.render(a_page(report, **figures))


def row_of(page, start):
    """The row of a table that starts so, as its cells."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_figure_within_its_budget_is_held(budgets):
    """The budget itself still holds."""
    assert "held" == budgets.verdict(budgets.BUDGETS[0], {"3.11": 5.0, "3.13": 4.0})


def test_a_missed_budget_says_where_by_how_much_and_why(budgets):
    """The reason comes from the editable table, and stands there once."""
    assert "missed on 3.11 by 20%, 3.13 by 10%: the reason" == budgets.verdict(
        budgets.BUDGETS[0], {"3.11": 6.0, "3.13": 5.5}
    )


def test_a_budget_held_on_one_version_only_is_not_held(budgets):
    """Both are told."""
    assert "missed on 3.11 by 20%; held on 3.13: the reason" == budgets.verdict(
        budgets.BUDGETS[0], {"3.11": 6.0, "3.13": 5.0}
    )


def test_a_missed_budget_without_a_reason_says_so(budgets):
    """Nobody reads silence as a reason."""
    assert "missed on 3.11 by 100%: not yet explained" == budgets.verdict(budgets.BUDGETS[1], {"3.11": 11.0})


def test_what_must_be_nothing_is_missed_by_a_count(budgets):
    """A share of zero would say nothing."""
    (budget,) = (budget for budget in budgets.BUDGETS if budget.limit == 0)
    assert "missed on 3.11 by 2: not yet explained" == budgets.verdict(budget, {"3.11": 2})


def test_every_reason_belongs_to_a_budget(budgets, monkeypatch):
    """A reason under a misspelt key would never be shown."""
    monkeypatch.undo()
    assert set() == set(budgets.REASONS) - {budget.key for budget in (*budgets.BUDGETS, *budgets.PURE)}


def test_a_row_has_its_budget_and_figure(report):
    """Each version has a column."""
    row = row_of(page_of(report, py3_11=450.0, py3_13=400.0), "no journal, no bridge, at the root")
    assert ["no journal, no bridge, at the root", "<= 5.00 x floor", "4.50", "4.00", "held"] == row


def test_what_was_not_measured_is_said(report):
    """A panel left out leaves its rows."""
    assert "not measured" == row_of(page_of(report, py3_11=450.0), "disabled")[-1]


def test_the_page_tells_how_to_repeat_it(report):
    """Machine, command, date and versions."""
    page = page_of(report, py3_11=450.0)
    assert ("Written by `a command` on 2020-01-02. Machine: a machine; no load." in page, ["attrs", "1.2"]) == (
        True,
        row_of(page, "attrs"),
    )


def test_a_page_is_written_again_from_what_was_kept(report):
    """An edited reason needs no new measurement."""
    page = a_page(report, py3_11=450.0)
    assert report.render(page) == report.render(report.Page.of_json(page.to_json()))
