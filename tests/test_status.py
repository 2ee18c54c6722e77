"""The status table: what may follow what, who may make it so, and what an exception makes of a phase."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import re
import sys
import types
from pathlib import Path

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from stormphase._model import EndKind, PhaseStatus
from stormphase._status import (
    MAX_JSON_CHARS,
    TABLE,
    Ownership,
    Rule,
    StatusChange,
    StatusTable,
    outcome_of,
    session_status_of,
)
from stormphase.exceptions import OwnershipError, StatusError

ACTIVE, PAUSED, SUCCEEDED, FAILED, CANCELLED, ABANDONED, LOST = PhaseStatus
STATUS_PAGE = Path(__file__).resolve().parent.parent / "docs" / "status.md"

PAIRS = list(itertools.product(PhaseStatus, PhaseStatus))
ALLOWED = [(current, to) for current, to in PAIRS if to in TABLE.rules[current].next]
REFUSED = [pair for pair in PAIRS if pair not in ALLOWED]
BY_OWNER = [pair for pair in ALLOWED if Ownership.REQUIRES in TABLE.rules[pair[1]].ownership]
AT_NS = 1_769_904_000_000_000_001


def pair_id(status: PhaseStatus) -> str:
    """Return a status as a test's id."""
    return status.value


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_design_says():
    """ACTIVE and PAUSED alternate and both end in any of the five ends, and nothing follows an end."""
    ends = {SUCCEEDED, FAILED, CANCELLED, ABANDONED, LOST}
    expected = {ACTIVE: {PAUSED} | ends, PAUSED: {ACTIVE} | ends} | {end: set() for end in ends}
    assert expected == {status: set(rule.next) for status, rule in TABLE.rules.items()}
    assert ends == {status for status, rule in TABLE.rules.items() if rule.is_final}


def test_ownership_is_what_the_design_says():
    """ACTIVE acquires; PAUSED and the owner's ends require and release; ABANDONED and LOST override."""
    required = Ownership.REQUIRES | Ownership.RELEASES
    overridden = Ownership.OVERRIDES | Ownership.RELEASES
    assert {
        ACTIVE: Ownership.ACQUIRES,
        PAUSED: required,
        SUCCEEDED: required,
        FAILED: required,
        CANCELLED: required,
        ABANDONED: overridden,
        LOST: overridden,
    } == {status: rule.ownership for status, rule in TABLE.rules.items()}
    assert {LOST} == {status for status, rule in TABLE.rules.items() if rule.needs_evidence}


@pytest.mark.parametrize("member", [*PhaseStatus, *EndKind], ids=repr)
def test_a_status_and_an_end_are_shown_in_lower_case(member):
    """By str(), by format() and in an f-string, on every Python."""
    assert [member.name.lower()] * 3 == [str(member), format(member), f"{member}"]


def test_the_table_cannot_be_changed():
    """Neither the rules nor a rule can be changed, nor the mapping the table was made from."""
    rules = dict(TABLE.rules)
    table = StatusTable(rules)
    rules.clear()
    assert TABLE == table
    with pytest.raises(TypeError):
        table.rules[ACTIVE] = TABLE.rules[PAUSED]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        table.rules[ACTIVE].is_final = True


RELEASED = Ownership.REQUIRES | Ownership.RELEASES


@pytest.mark.parametrize(
    ("status", "rule", "problem"),
    [
        (LOST, None, "lost has no rule"),
        ("zombie", TABLE.rules[LOST], "'zombie' is no status"),
        (ACTIVE, Rule(frozenset({"zombie"}), False, Ownership.ACQUIRES), "active leads to zombie, which has no rule"),
        (ACTIVE, Rule(frozenset({ACTIVE}), False, Ownership.ACQUIRES), "active leads to itself"),
        (FAILED, Rule(frozenset({ACTIVE}), True, RELEASED), "failed is final and has a way out"),
        (PAUSED, Rule(frozenset(), False, RELEASED), "paused is not final and has no way out"),
        (
            PAUSED,
            Rule(frozenset({ACTIVE}), False, Ownership.ACQUIRES | Ownership.RELEASES),
            "paused both acquires and releases",
        ),
        (
            PAUSED,
            Rule(frozenset({ACTIVE}), False, RELEASED | Ownership.OVERRIDES),
            "paused both requires ownership and overrides it",
        ),
        (
            PAUSED,
            Rule(frozenset({ACTIVE}), False, Ownership.REQUIRES),
            "paused neither acquires nor releases",
        ),
        (FAILED, Rule(frozenset(), True, Ownership.ACQUIRES), "failed is final and acquires"),
        (FAILED, Rule(frozenset(), True, RELEASED, True), "failed needs evidence and does not override"),
    ],
)
def test_a_contradictory_table_cannot_be_built(status, rule, problem):
    """A table checks itself when built and says what is wrong with it."""
    rules = {**TABLE.rules, status: rule}
    if rule is None:
        del rules[status]
    with pytest.raises(ValueError, match="The status table is wrong: ") as caught:
        StatusTable(rules)
    problems = str(caught.value).removeprefix("The status table is wrong: ").removesuffix(".").split("; ")
    assert problem in problems


def test_all_that_is_wrong_is_said_at_once():
    """Whoever wrote the table learns of every contradiction."""
    with pytest.raises(ValueError, match="The status table is wrong") as caught:
        StatusTable({ACTIVE: TABLE.rules[ACTIVE]})
    problems = str(caught.value).removeprefix("The status table is wrong: ").removesuffix(".").split("; ")
    missing = [status for status in PhaseStatus if status is not ACTIVE]
    assert [f"{status.value} has no rule" for status in missing] == problems[:6]
    assert {f"active leads to {status.value}, which has no rule" for status in missing} == set(problems[6:])


def test_the_page_shows_the_table():
    """docs/status.md is drawn from the table; if this fails, write `TABLE.to_markdown()` into it."""
    assert TABLE.to_markdown() == STATUS_PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("current", "to"), ALLOWED, ids=pair_id)
def test_the_page_names_every_change(current, to):
    """Each allowed change is an arrow of the picture."""
    assert f"    {current.value} --> {to.value}\n" in TABLE.to_markdown()


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("current", "to"), ALLOWED, ids=pair_id)
def test_an_allowed_change_is_recorded(current, to):
    """Every change of the table, made by the owner, gives a record that says all of it."""
    expected = StatusChange(
        from_status=current,
        to_status=to,
        owner_before="rank0",
        owner_after="rank0" if to is ACTIVE else None,
        actor="rank0",
        evidence="pid 7 is gone",
        at_ns=AT_NS,
    )
    assert expected == TABLE.change(current, to, owner="rank0", actor="rank0", at_ns=AT_NS, evidence="pid 7 is gone")
    assert to is TABLE.checked(current, to)


@pytest.mark.parametrize(("current", "to"), REFUSED, ids=pair_id)
def test_a_change_outside_the_table_is_refused(current, to):
    """Every other pair raises, with the facts, and before ownership is looked at."""
    with pytest.raises(StatusError, match=f"is {current.value} cannot become {to.value}") as caught:
        TABLE.change(current, to, owner="rank0", actor="thief", at_ns=AT_NS)
    assert (current.value, to.value) == (caught.value.current, caught.value.wanted)
    assert {status.value for status in TABLE.rules[current].next} == set(caught.value.allowed)
    with pytest.raises(StatusError):
        TABLE.checked(current, to)


@pytest.mark.parametrize(
    ("current", "to", "fix"),
    [
        (PAUSED, PAUSED, "from there it can become active, succeeded, failed, cancelled, abandoned, lost."),
        (SUCCEEDED, FAILED, "that is final; enter a new phase."),
        ("zombie", ACTIVE, "there is no such status."),
        (ACTIVE, "zombie", "from there it can become paused, succeeded, failed, cancelled, abandoned, lost."),
    ],
)
def test_a_refusal_says_what_is_possible(current, to, fix):
    """The message ends with what can be done instead, also for a status that does not exist."""
    with pytest.raises(StatusError) as caught:
        TABLE.checked(current, to)
    assert f"A phase that is {current} cannot become {to}: {fix}" == str(caught.value)


@pytest.mark.parametrize(("current", "to"), BY_OWNER, ids=pair_id)
@pytest.mark.parametrize("actor", ["thief", None])
def test_only_the_owner_may(current, to, actor):
    """A change that requires ownership is refused to everyone else, who learns whose phase it is."""
    with pytest.raises(OwnershipError, match="only its owner, rank0, can do that") as caught:
        TABLE.change(current, to, owner="rank0", actor=actor, at_ns=AT_NS)
    assert ("rank0", actor) == (caught.value.owner, caught.value.actor)
    assert str(caught.value).startswith(f"{actor or 'Nobody in particular'} cannot make a phase that is {current} {to}")


@pytest.mark.parametrize(("current", "to"), BY_OWNER, ids=pair_id)
@pytest.mark.parametrize("actor", ["rank0", None])
def test_a_phase_released_for_good_has_no_owner(current, to, actor):
    """What nobody owns nobody may pause or end: it has to be resumed first."""
    with pytest.raises(OwnershipError, match="nobody owns it: resume it first") as caught:
        TABLE.change(current, to, owner=None, actor=actor, at_ns=AT_NS)
    assert (None, actor) == (caught.value.owner, caught.value.actor)


@pytest.mark.parametrize("owner", ["rank0", None])
def test_whoever_resumes_becomes_the_owner(owner):
    """A paused phase belongs to whoever resumes it."""
    assert "rank1" == TABLE.change(PAUSED, ACTIVE, owner=owner, actor="rank1", at_ns=AT_NS).owner_after


def test_nobody_cannot_resume():
    """Acquiring needs somebody."""
    with pytest.raises(OwnershipError, match="say who owns it from then on") as caught:
        TABLE.change(PAUSED, ACTIVE, owner="rank0", actor=None, at_ns=AT_NS)
    assert ("rank0", None) == (caught.value.owner, caught.value.actor)


@pytest.mark.parametrize("current", [ACTIVE, PAUSED], ids=pair_id)
@pytest.mark.parametrize("actor", ["the session's end", None])
def test_abandoning_overrides_the_owner(current, actor):
    """An outer phase or the session's end decides, whoever owns the phase."""
    change = TABLE.change(current, ABANDONED, owner="rank0", actor=actor, at_ns=AT_NS)
    assert ("rank0", None, actor, None) == (change.owner_before, change.owner_after, change.actor, change.evidence)


@pytest.mark.parametrize("current", [ACTIVE, PAUSED], ids=pair_id)
def test_losing_overrides_the_owner_with_evidence(current):
    """Recovery decides, and the record keeps what it knew."""
    change = TABLE.change(current, LOST, owner="rank0", actor="recovery", at_ns=AT_NS, evidence="pid 7 is gone")
    assert ("rank0", None, "pid 7 is gone") == (change.owner_before, change.owner_after, change.evidence)


@pytest.mark.parametrize("evidence", [None, "", " \n"])
@pytest.mark.parametrize("actor", ["recovery", "rank0"])
def test_losing_needs_evidence(evidence, actor):
    """Not even the owner can call a phase lost without saying how it is known."""
    with pytest.raises(OwnershipError, match="without evidence that its owner, rank0, is dead") as caught:
        TABLE.change(ACTIVE, LOST, owner="rank0", actor=actor, at_ns=AT_NS, evidence=evidence)
    assert ("rank0", actor) == (caught.value.owner, caught.value.actor)


@pytest.mark.parametrize(
    ("current", "to", "owner", "actor", "expected"),
    [
        (
            ACTIVE,
            FAILED,
            "rank0",
            "thief",
            "thief cannot make a phase that is active failed: only its owner, rank0, can do that.",
        ),
        (
            PAUSED,
            FAILED,
            None,
            None,
            "Nobody in particular cannot make a phase that is paused failed: nobody owns it: resume it first.",
        ),
        (
            PAUSED,
            ACTIVE,
            "rank0",
            None,
            "A phase that is paused cannot become active for nobody: say who owns it from then on.",
        ),
        (
            ACTIVE,
            LOST,
            "rank0",
            "recovery",
            "recovery cannot make a phase lost without evidence that its owner, rank0, is dead.",
        ),
    ],
    ids=["not the owner", "released", "for nobody", "no evidence"],
)
def test_a_refusal_of_ownership_is_told_word_for_word(current, to, owner, actor, expected):
    """Who tried what, and what would have been right."""
    with pytest.raises(OwnershipError) as caught:
        TABLE.change(current, to, owner=owner, actor=actor, at_ns=AT_NS)
    assert expected == str(caught.value)


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_ns", "expected"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (AT_NS, "2026-02-01T00:00:00.000000001Z"),
        (253_402_300_799_999_999_999, "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_times_are_utc_with_nanoseconds(at_ns, expected):
    """No nanosecond is lost between the integer and the text."""
    assert expected == TABLE.change(ACTIVE, PAUSED, owner="a", actor="a", at_ns=at_ns).at


texts = st.text(min_size=1, max_size=50).filter(str.strip)


@given(st.sampled_from(ALLOWED), texts, st.none() | texts, st.integers(0, 253_402_300_799_999_999_999))
def test_records_read_back_as_they_were_written(pair, owner, evidence, at_ns):
    """A record written as one line of JSON and read again is equal to itself."""
    change = TABLE.change(*pair, owner=owner, actor=owner, at_ns=at_ns, evidence=evidence or "e")
    assert "\n" not in change.to_json()
    assert change == StatusChange.from_json(change.to_json())


def written(**fields: object) -> str:
    """Return a record as JSON, with some fields replaced, and those that are `...` left out."""
    change = TABLE.change(ACTIVE, FAILED, owner="rank0", actor="rank0", at_ns=AT_NS)
    all_fields = {**json.loads(change.to_json()), **fields}
    return json.dumps({name: value for name, value in all_fields.items() if value is not ...})


def test_fields_of_a_newer_version_are_ignored():
    """A record with a field more is read for what is known of it."""
    assert FAILED is StatusChange.from_json(written(reason="new")).to_status


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        *((field, ..., "is missing") for field in json.loads(written())),
        ("from", "zombie", "must be one of active, paused, "),
        ("to", None, "must be one of active, paused, "),
        ("to", [1], "must be one of active, paused, "),
        ("to", "active", "cannot follow 'active'"),
        ("owner_before", 1, "must be a string of 1 to 4096 characters"),
        ("owner_after", "", "must be a string of 1 to 4096 characters"),
        ("actor", " ", "must be a string of 1 to 4096 characters"),
        ("evidence", "x" * 4_097, "must be a string of 1 to 4096 characters"),
        ("at_ns", -1, "must be an integer, in nanoseconds"),
        ("at_ns", 253_402_300_800_000_000_000, "must be an integer, in nanoseconds"),
        ("at_ns", True, "must be an integer, in nanoseconds"),
        ("at_ns", 1.5, "must be an integer, in nanoseconds"),
        ("at", "2026-02-01T00:00:00Z", "must be '2026-02-01T00:00:00.000000001Z', as 'at_ns' says"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(field, value, problem):
    """What is wrong with a record is said of the field that is wrong."""
    with pytest.raises(ValueError, match="of a status change") as caught:
        StatusChange.from_json(written(**{field: value}))
    assert str(caught.value).startswith(f"{field!r} of a status change {problem}")


@pytest.mark.parametrize(
    ("field", "value", "problem", "shown"),
    [
        (
            "at_ns",
            "\N{SNOWMAN}" * 99,
            "must be an integer, in nanoseconds since the Unix epoch, before the year 10000",
            "'" + r"\u2603" * 13 + "\\",
        ),
        ("actor", "", "must be a string of 1 to 4096 characters, and not blank", "''"),
        ("to", "active", "cannot follow 'active'", "'active'"),
        ("from", 0, "must be one of active, paused, succeeded, failed, cancelled, abandoned, lost", "0"),
        ("at", "now", "must be '2026-02-01T00:00:00.000000001Z', as 'at_ns' says", "'now'"),
    ],
    ids=str,
)
def test_a_wrong_field_is_told_with_its_value(field, value, problem, shown):
    """Word for word: the field, what it must be, and what it is, harmless and cut short."""
    with pytest.raises(ValueError, match="of a status change") as caught:
        StatusChange.from_json(written(**{field: value}))
    assert f"{field!r} of a status change {problem}, and is {shown}." == str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"must be a JSON object: Expecting .+"),
        ("{", r"must be a JSON object: Expecting .+"),
        ("[" * 60_000, r"must be a JSON object: .+"),
        ("[]", r"must be a JSON object, not list\."),
        ("{" + " " * MAX_JSON_CHARS + "}", r"must be at most 65536 characters of JSON, not 65538\."),
    ],
    ids=["empty", "torn", "deep", "list", "long"],
)
def test_what_is_no_record_is_refused(text, problem):
    """Text from a file may be anything, and gives one kind of error."""
    with pytest.raises(ValueError, match="A status change") as caught:
        StatusChange.from_json(text)
    assert None is not re.fullmatch(f"A status change {problem}", str(caught.value))


def test_records_of_just_the_greatest_size_are_read():
    """The limits are the greatest sizes that are still allowed."""
    text = written(evidence="x" * 4_096)
    change = StatusChange.from_json(text + " " * (MAX_JSON_CHARS - len(text)))
    assert "x" * 4_096 == change.evidence


@pytest.mark.parametrize(("field", "value"), [("actor", "x" * 4_097), ("at_ns", -1), ("evidence", 7)])
def test_a_record_cannot_be_made_of_what_could_not_be_read(field, value):
    """A change checks what it is given, so that what is written can be read."""
    arguments = {"owner": "a", "actor": "a", "at_ns": AT_NS, "evidence": None, field: value}
    with pytest.raises(ValueError, match=f"'{field}' of a status change must be "):
        TABLE.change(ACTIVE, ABANDONED, **arguments)


# --- outcomes ---------------------------------------------------------------------------------------------------------


class PanicError(BaseException):
    """What a library written in Rust raises when it panics."""


class HostileError(Exception):
    """Raises when it is asked anything."""

    def _raise(self, *args):
        raise RuntimeError

    __str__ = __repr__ = __getattr__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]


def trio_cancelled() -> BaseException:
    """Return what trio really cancels with."""
    caught = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except BaseException as error:
                caught.append(error)
                raise

    trio.run(main)
    return caught[0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: None, SUCCEEDED),
        (ValueError, FAILED),
        (StopIteration, SUCCEEDED),
        (StopAsyncIteration, SUCCEEDED),
        (type("End", (StopIteration,), {}), SUCCEEDED),
        (lambda: BaseExceptionGroup("", [StopIteration()]), FAILED),
        (asyncio.TimeoutError, FAILED),
        (HostileError, FAILED),
        (PanicError, FAILED),
        (BaseException, FAILED),
        (concurrent.futures.CancelledError, FAILED),
        (asyncio.CancelledError, CANCELLED),
        (trio_cancelled, CANCELLED),
        (KeyboardInterrupt, CANCELLED),
        (SystemExit, CANCELLED),
        (GeneratorExit, CANCELLED),
        (type("Stop", (KeyboardInterrupt,), {}), CANCELLED),
        (lambda: ExceptionGroup("", [ValueError(), TypeError()]), FAILED),
        (lambda: BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()]), FAILED),
        (lambda: BaseExceptionGroup("", [ValueError(), asyncio.CancelledError()]), FAILED),
        (lambda: BaseExceptionGroup("", [asyncio.CancelledError(), KeyboardInterrupt()]), CANCELLED),
        (
            lambda: BaseExceptionGroup("", [SystemExit(), BaseExceptionGroup("", [asyncio.CancelledError()])]),
            CANCELLED,
        ),
        (lambda: BaseExceptionGroup("", [SystemExit(), BaseExceptionGroup("", [PanicError()])]), FAILED),
    ],
    ids=map(str, range(23)),
)
def test_outcomes(make, expected):
    """Each exception makes of a phase what the design says."""
    assert expected is outcome_of(make())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, SUCCEEDED),
        (StopIteration(), FAILED),
        (ValueError(), FAILED),
        (SystemExit(), SUCCEEDED),
        (SystemExit(1), CANCELLED),
    ],
)
def test_outcomes_of_sessions(error, expected):
    """As of phases, but for an exit with status 0, and since nothing is left that could take the end of an iterator."""
    assert expected is session_status_of(error)


def test_a_task_that_is_cancelled_is_cancelled():
    """What asyncio really raises into a task is recognised."""
    caught = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            caught.append(error)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.wait([task], timeout=0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert [CANCELLED] == [outcome_of(error) for error in caught]


def test_a_killed_greenlet_is_cancelled(monkeypatch):
    """What gevent and eventlet kill with is recognised once greenlet has been imported."""
    greenlet = types.ModuleType("greenlet")
    greenlet.GreenletExit = type("GreenletExit", (BaseException,), {})
    assert FAILED is outcome_of(greenlet.GreenletExit())
    monkeypatch.setitem(sys.modules, "greenlet", greenlet)
    assert CANCELLED is outcome_of(greenlet.GreenletExit())


def test_a_half_imported_library_is_no_trouble(monkeypatch):
    """A module that does not have its exception yet is passed over."""
    monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))
    assert FAILED is outcome_of(PanicError())


def test_a_deep_group_ends():
    """Groups in groups are walked without recursion."""
    error: BaseException = KeyboardInterrupt()
    for _ in range(5_000):
        error = BaseExceptionGroup("", [error])
    assert CANCELLED is outcome_of(error)
    while getattr(error, "exceptions", None):
        # Taken apart by hand: old Pythons free deep nests by recursion.
        (error,) = error.exceptions


def test_asking_for_an_outcome_imports_nothing(run_python):
    """Neither asyncio nor trio is imported to find out that nobody cancelled by it."""
    child = run_python(
        "import sys; from stormphase._status import outcome_of; print(outcome_of(ValueError()).value);"
        "print({'asyncio', 'trio', 'greenlet', 'concurrent.futures'} & set(sys.modules))"
    )
    assert "failed\nset()\n" == child.stdout


# --- what errors carry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "to", "actor", "kind"),
    [(SUCCEEDED, FAILED, "thief", StatusError), (ACTIVE, FAILED, "thief", OwnershipError)],
    ids=["status", "ownership"],
)
def test_both_errors_carry_all_there_is_to_know(current, to, actor, kind):
    """What it was, what was asked for, what the table allows, whose it is and who asked."""
    with pytest.raises(kind) as caught:
        TABLE.change(current, to, owner="rank0", actor=actor, at_ns=AT_NS)
    allowed = {status.value for status in TABLE.rules[current].next}
    assert {"current": current, "wanted": to, "owner": "rank0", "actor": actor} == {
        name: getattr(caught.value, name) for name in ("current", "wanted", "owner", "actor")
    }
    assert allowed == set(caught.value.allowed)


def test_where_no_owner_was_asked_about_there_is_none():
    """`checked` knows of statuses only."""
    with pytest.raises(StatusError) as caught:
        TABLE.checked(SUCCEEDED, FAILED)
    assert (None, None) == (caught.value.owner, caught.value.actor)
