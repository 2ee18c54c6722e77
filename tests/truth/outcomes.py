"""What is true of a planted job, and what an answer of `stormphase postmortem` is worth beside it."""

from __future__ import annotations

import re

import attrs

RIGHT = "right"
INNOCENT = "innocent first"
NOT_NAMED = "culprit not named"
LESS = "honest but less"
GUESSED = "guessed"
OUTCOMES = (RIGHT, INNOCENT, NOT_NAMED, LESS, GUESSED)

# What the journals show.
NAMED = "named"  # the culprits, and nobody else
TIE = "tie"  # one of these, or all of them
MAY = "may"  # hints: to name the culprits is right, and so is to say that it cannot be told
UNTOLD = "untold"  # nothing tells one from another
WELL = "well"  # nothing is wrong


@attrs.frozen
class Truth:
    """The truth of a planted job.

    Attributes:
        shown: what the journals show of it.
        culprits: the ranks in which it was planted; empty where it was in none.
        tied: for a tie, whom the journals do not tell apart.
        codes: the exit codes that are right.
        evidence: what the journals have, in words.
    """

    shown: str
    culprits: frozenset = frozenset()
    tied: frozenset = frozenset()
    codes: tuple = (1,)
    evidence: str = ""


@attrs.frozen
class Said:
    """What an answer says.

    Attributes:
        head: the ranks that it puts first, all of one place.
        kind: "named", "tie", "untold" or "well".
        complaints: where exit code, text and JSON do not say the same.
    """

    head: frozenset
    kind: str
    complaints: tuple


@attrs.frozen
class Judgement:
    """The outcome of a job, and what else was wrong."""

    outcome: str
    complaints: tuple
    said: Said


_ANSWERS = {"named": NAMED, "tie": TIE, "cannot be told": UNTOLD, "well": WELL}
_FIRST_IN_TEXT = re.compile(r"^  1\. rank (\d+):", re.MULTILINE)


def said_by(answer):
    """Return what an answer says, from its JSON, and whether its text and exit code say the same."""
    told = answer.json
    suspects = [each["rank"] for each in told["suspects"]]
    verdict = told.get("verdict")
    if verdict is not None:
        kind, head = _ANSWERS[verdict["answer"]], frozenset(verdict["ranks"])
    elif not suspects:
        kind, head = (WELL if answer.json_code == 0 else UNTOLD), frozenset()
    elif len(suspects) > 1 and {each["kind"] for each in told["suspects"]} == {"died"}:
        kind, head = UNTOLD, frozenset()
    else:
        kind, head = NAMED, frozenset(suspects[:1])
    complaints = [*_json_complaints(answer, kind, head, suspects), *_text_complaints(answer.text, kind, head)]
    return Said(head, kind, tuple(complaints))


def _json_complaints(answer, kind, head, suspects):
    if answer.code != answer.json_code:
        yield f"exit code {answer.code} with text, {answer.json_code} with --json"
    if kind in {NAMED, TIE} and suspects and suspects[0] not in head:
        yield f"JSON puts rank {suspects[0]} first among suspects, and not one of {sorted(head)}"
    if kind in {UNTOLD, WELL} and suspects:
        yield f"JSON has suspects, rank {suspects[0]} first, though nobody is named"
    if (kind == WELL) != (answer.json_code == 0):
        yield f"exit code {answer.json_code} for {kind}"


def _text_complaints(text, kind, head):
    found = _FIRST_IN_TEXT.search(text)
    words = " ".join(text.split())
    if kind == NAMED and found is not None and int(found.group(1)) not in head:
        yield f"the text puts rank {found.group(1)} first"
    if kind == NAMED and found is None and not any(f"rank {rank}" in words for rank in head):
        yield "the text names nobody"
    if kind == TIE and not re.search(r"\btied?\b", words):
        yield "the text does not say that it is a tie"
    if kind == UNTOLD and "cannot be told" not in words and "no journal of rank" not in words:
        yield "the text does not say that it cannot be told"


def judge(answer, truth, ranks, absent=frozenset()):
    """Return what an answer is worth.

    Args:
        answer: what the command said.
        truth: of the job.
        ranks: all ranks of it.
        absent: those without a journal: to say that they have none, and nothing else, names them.
    """
    said = said_by(answer)
    complaints = list(said.complaints)
    if answer.json_code not in truth.codes:
        complaints.append(f"exit code {answer.json_code}, and not {' or '.join(map(str, truth.codes))}")
    head = said.head
    is_said_absent = f"no journal of rank{'s' * (len(absent) > 1)} " in " ".join(answer.text.split())
    if said.kind in {UNTOLD, WELL} and truth.culprits and truth.culprits <= absent and is_said_absent:
        head = truth.culprits
    return Judgement(_outcome(said, head, truth, frozenset(ranks)), tuple(complaints), said)


def _outcome(said, head, truth, ranks):  # noqa: C901, PLR0911 - one line a case
    innocents = head - truth.culprits - truth.tied
    if truth.shown == WELL:
        return INNOCENT if head else RIGHT if said.kind == WELL else LESS
    if truth.shown == UNTOLD:
        if not head or head == ranks:
            return RIGHT
        return GUESSED if head <= truth.culprits else INNOCENT
    if truth.shown == TIE:
        if head == truth.tied or (not head and truth.tied == ranks and said.kind == UNTOLD):
            return RIGHT
        if not head:
            return LESS if said.kind == UNTOLD else NOT_NAMED
        if head > truth.tied:
            return LESS
        return GUESSED if head <= truth.culprits else INNOCENT
    if not head:
        if truth.shown == MAY:
            return RIGHT if said.kind == UNTOLD else NOT_NAMED
        return LESS if said.kind == UNTOLD else NOT_NAMED
    if not innocents:
        return RIGHT
    if said.kind == TIE and truth.culprits <= head:
        return RIGHT if truth.shown == MAY else LESS
    return INNOCENT
