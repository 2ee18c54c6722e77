"""Planted jobs whose culprit is known: no innocent comes first, and each culprit that the journals show is named."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("truth_loading", Path(__file__).with_name("loading.py"))
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

from truth_judge import run_case  # noqa: E402 - importable from here on
from truth_kinds import KINDS  # noqa: E402
from truth_outcomes import RIGHT  # noqa: E402

SEED = 1_033  # none that the long run has; its jobs are small


@functools.cache
def case_of(kind):
    """Return the judged job of a kind, which is lived once."""
    return run_case(kind, SEED)


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_named_is_the_culprit(kind):
    """One job of each kind: exactly the culprits come first, or nobody does where nothing shows them."""
    case = case_of(kind)
    assert RIGHT == case.judgement.outcome, f"{case.truth}\n{case.judgement.said}\n{case.answer.text}"


@pytest.mark.parametrize("kind", KINDS)
def test_exit_code_text_and_json_say_the_same(kind):
    """One job of each kind: whoever reads one of the three reads the same as who reads another."""
    case = case_of(kind)
    assert () == case.judgement.complaints, case.answer.text
