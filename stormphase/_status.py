"""Life of a phase: the only place where a status changes, and what an exception makes of a phase.

`TABLE` says for each status what may follow it, whether it is final, and what becoming it does to ownership. Whether
the table allows a change is checked first, whether this actor may make it second.

A PAUSED phase is released: whoever resumes it becomes its owner. Until somebody has, its last owner may also end it,
so that a `with` block can be left while its phase is paused; one that was released for good (`owner=None`) has to be
resumed first. ABANDONED and LOST are not up to the owner, who has gone: an outer phase, the session's end or recovery
decides, and recovery needs evidence that the owner is dead.

Everything here is pure, and thread-, fork- and async-safe.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

import attrs

from stormphase._model import PhaseStatus
from stormphase.exceptions import OwnershipError, StatusError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_TEXT_CHARS: Final = 4_096
MAX_JSON_CHARS: Final = 65_536

_NS_PER_S: Final = 1_000_000_000
_YEAR_10000_NS: Final = 253_402_300_800 * _NS_PER_S


class Ownership(enum.Flag):
    """What becoming a status asks of the phase's ownership, and does to it."""

    REQUIRES = enum.auto()  # only the owner may make the change
    ACQUIRES = enum.auto()  # whoever makes the change owns the phase afterwards
    RELEASES = enum.auto()  # nobody owns the phase afterwards
    OVERRIDES = enum.auto()  # somebody else decides, whoever the owner is


@attrs.frozen
class Rule:
    """What holds for one status.

    Attributes:
        next: the statuses that may follow it.
        is_final: whether the phase has ended.
        ownership: what becoming it asks of the phase's ownership, and does to it.
        needs_evidence: whether becoming it needs evidence that the owner is dead.
    """

    next: frozenset[PhaseStatus]
    is_final: bool
    ownership: Ownership
    needs_evidence: bool = False


class _Facts(TypedDict):
    """What both errors of a change carry."""

    current: str
    wanted: str
    allowed: list[str]
    owner: str | None
    actor: str | None


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT_CHARS:
        message = f"must be a string of 1 to {MAX_TEXT_CHARS} characters, and not blank"
        raise _field_error(field.name, message, value)


def _wall_ns(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 0 <= value < _YEAR_10000_NS:
        message = "must be an integer, in nanoseconds since the Unix epoch, before the year 10000"
        raise _field_error(field.name, message, value)


def _field_error(field: str, problem: str, value: object) -> ValueError:
    return ValueError(f"{field!r} of a status change {problem}, and is {ascii(value)[:80]}.")


_optional_text: Final = attrs.validators.optional(_text)


@attrs.frozen
class StatusChange:
    """One change of a phase's status, as it happened.

    Attributes:
        from_status: what the phase was.
        to_status: what it became.
        owner_before: who owned it, or, if it was PAUSED, owned it last; None if it had been released for good.
        owner_after: who owns it now, or None.
        actor: who changed it, or None if nobody in particular.
        evidence: how it is known that the owner is dead, or None.
        at_ns: when, on the wall clock, in nanoseconds since the Unix epoch.
    """

    from_status: PhaseStatus
    to_status: PhaseStatus
    owner_before: str | None = attrs.field(validator=_optional_text)
    owner_after: str | None = attrs.field(validator=_optional_text)
    actor: str | None = attrs.field(validator=_optional_text)
    evidence: str | None = attrs.field(validator=_optional_text)
    at_ns: int = attrs.field(validator=_wall_ns)

    @property
    def at(self) -> str:
        """When, as ISO 8601 in UTC with nanoseconds: `2026-01-31T23:59:59.000000001Z`."""
        seconds, nanoseconds = divmod(self.at_ns, _NS_PER_S)
        # By a difference: platforms disagree on how late a timestamp may be.
        moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"

    def to_json(self) -> str:
        """Return the change as one JSON object, on one line."""
        return json.dumps(
            {
                "from": self.from_status.value,
                "to": self.to_status.value,
                "owner_before": self.owner_before,
                "owner_after": self.owner_after,
                "actor": self.actor,
                "evidence": self.evidence,
                "at": self.at,
                "at_ns": self.at_ns,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> StatusChange:
        """Read what `to_json` wrote; fields that it does not know are left to newer versions.

        Raises:
            ValueError: if a field is missing or wrong; the message names it.
        """
        if len(text) > MAX_JSON_CHARS:
            raise ValueError(f"A status change must be at most {MAX_JSON_CHARS} characters of JSON, not {len(text)}.")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"A status change must be a JSON object: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"A status change must be a JSON object, not {type(fields).__name__}.")  # noqa: TRY004 - one kind of error for every bad text
        for field in ("from", "to", "owner_before", "owner_after", "actor", "evidence", "at", "at_ns"):
            if field not in fields:
                raise ValueError(f"{field!r} of a status change is missing.")
        change = cls(
            from_status=_status(fields, "from"),
            to_status=_status(fields, "to"),
            owner_before=fields["owner_before"],
            owner_after=fields["owner_after"],
            actor=fields["actor"],
            evidence=fields["evidence"],
            at_ns=fields["at_ns"],
        )
        if change.to_status not in TABLE.rules[change.from_status].next:
            raise _field_error("to", f"cannot follow {change.from_status.value!r}", fields["to"])
        if change.at != fields["at"]:
            raise _field_error("at", f"must be {change.at!r}, as 'at_ns' says", fields["at"])
        return change


def _status(fields: dict[str, Any], field: str) -> PhaseStatus:
    try:
        return PhaseStatus(fields[field])
    except ValueError:
        raise _field_error(field, f"must be one of {_listed(PhaseStatus)}", fields[field]) from None


def _frozen(rules: Mapping[PhaseStatus, Rule]) -> Mapping[PhaseStatus, Rule]:
    return types.MappingProxyType(dict(rules))


@attrs.frozen
class StatusTable:
    """The rules of all statuses; checks itself when built.

    Raises:
        ValueError: if the rules contradict each other; the message lists how.
    """

    rules: Mapping[PhaseStatus, Rule] = attrs.field(converter=_frozen)

    def __attrs_post_init__(self) -> None:
        """Check that the rules make sense together."""
        problems = list(self._problems())
        if problems:
            raise ValueError(f"The status table is wrong: {'; '.join(problems)}.")

    def _problems(self) -> Iterator[str]:
        yield from (f"{status} has no rule" for status in PhaseStatus if status not in self.rules)
        yield from (f"{status!r} is no status" for status in self.rules if status not in list(PhaseStatus))
        for status, rule in self.rules.items():
            for following in rule.next:
                if following not in self.rules:
                    yield f"{status} leads to {following}, which has no rule"
            if status in rule.next:
                yield f"{status} leads to itself"
            if rule.is_final and rule.next:
                yield f"{status} is final and has a way out"
            if not rule.is_final and not rule.next:
                yield f"{status} is not final and has no way out"
            yield from _contradictions(status, rule)

    def change(
        self,
        current: PhaseStatus,
        to: PhaseStatus,
        *,
        owner: str | None,
        actor: str | None,
        at_ns: int,
        evidence: str | None = None,
    ) -> StatusChange:
        """Check a change and return its record.

        Args:
            current: the status the phase has.
            to: the status it is to have.
            owner: who owns the phase, or, while it is PAUSED, owned it last; None if it was released for good.
            actor: who asks for the change.
            at_ns: when, on the wall clock, in nanoseconds since the Unix epoch.
            evidence: how it is known that the owner is dead; needed for LOST.

        Raises:
            StatusError: if the table does not allow the change.
            OwnershipError: if it does, but not to this actor, or not without evidence.
            ValueError: if an argument is no fit for the record; the message names it.
        """
        to = self._allowed(current, to, owner, actor)
        rule = self.rules[to]
        facts = _Facts(current=str(current), wanted=str(to), allowed=self._next(current), owner=owner, actor=actor)
        if Ownership.REQUIRES in rule.ownership and (owner is None or actor != owner):
            whose = "nobody owns it: resume it first" if owner is None else f"only its owner, {owner}, can do that"
            message = f"{_name(actor)} cannot make a phase that is {current} {to}: {whose}."
            raise OwnershipError(message, **facts)
        if Ownership.ACQUIRES in rule.ownership and actor is None:
            message = f"A phase that is {current} cannot become {to} for nobody: say who owns it from then on."
            raise OwnershipError(message, **facts)
        if rule.needs_evidence and not (evidence and evidence.strip()):
            message = f"{_name(actor)} cannot make a phase {to} without evidence that its owner, {owner}, is dead."
            raise OwnershipError(message, **facts)
        return StatusChange(
            from_status=PhaseStatus(current),
            to_status=to,
            owner_before=owner,
            owner_after=actor if Ownership.ACQUIRES in rule.ownership else None,
            actor=actor,
            evidence=evidence,
            at_ns=at_ns,
        )

    def checked(self, current: PhaseStatus, to: PhaseStatus) -> PhaseStatus:
        """Return `to`, if the table allows it to follow `current`; the hot path uses constants made by this.

        Raises:
            StatusError: if it does not.
        """
        return self._allowed(current, to, None, None)

    def _allowed(self, current: PhaseStatus, to: PhaseStatus, owner: str | None, actor: str | None) -> PhaseStatus:
        allowed = self._next(current)
        if to in allowed:
            return PhaseStatus(to)
        if allowed:
            way_out = f"from there it can become {', '.join(allowed)}"
        else:
            way_out = "that is final; enter a new phase" if current in self.rules else "there is no such status"
        message = f"A phase that is {current} cannot become {to}: {way_out}."
        raise StatusError(message, current=str(current), wanted=str(to), allowed=allowed, owner=owner, actor=actor)

    def _next(self, current: PhaseStatus) -> list[str]:
        """Return the statuses that may follow one, as they are written; none after what is no status."""
        rule = self.rules.get(current)
        return [] if rule is None else [status.value for status in PhaseStatus if status in rule.next]

    def to_markdown(self) -> str:
        """Return the table as Markdown: a Mermaid picture, and the rules in words."""
        lines = [
            "# Life of a phase",
            "",
            "Drawn from the table in `stormphase/_status.py`; a test fails when it is out of date.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {PhaseStatus.ACTIVE}",
        ]
        for status, rule in self.rules.items():
            lines += [f"    {status} --> {following}" for following in PhaseStatus if following in rule.next]
            if rule.is_final:
                lines.append(f"    {status} --> [*]")
        lines += [
            "```",
            "",
            "| status | what may follow | who may make it so | who owns the phase then |",
            "| --- |" + " --- |" * 3,
        ]
        for status, rule in self.rules.items():
            following = _listed(following for following in PhaseStatus if following in rule.next)
            lines.append(f"| {status} | {following or 'nothing: it is final'} | {_who(rule)} | {_whose(rule)} |")
        return "\n".join([*lines, ""])


def _contradictions(status: PhaseStatus, rule: Rule) -> Iterator[str]:
    """Say what is wrong with what one rule says of ownership."""
    ownership = rule.ownership
    if Ownership.ACQUIRES in ownership and Ownership.RELEASES in ownership:
        yield f"{status} both acquires and releases"
    if Ownership.REQUIRES in ownership and Ownership.OVERRIDES in ownership:
        yield f"{status} both requires ownership and overrides it"
    if Ownership.ACQUIRES not in ownership and Ownership.RELEASES not in ownership:
        yield f"{status} neither acquires nor releases"
    if rule.is_final and Ownership.ACQUIRES in ownership:
        yield f"{status} is final and acquires"
    if rule.needs_evidence and Ownership.OVERRIDES not in ownership:
        yield f"{status} needs evidence and does not override"


def _who(rule: Rule) -> str:
    if rule.needs_evidence:
        return "anyone with evidence that the owner is dead"
    if Ownership.OVERRIDES in rule.ownership:
        return "an outer phase or the session's end"
    return "its owner (the last one, if it is paused)" if Ownership.REQUIRES in rule.ownership else "anyone"


def _whose(rule: Rule) -> str:
    return "whoever made it so" if Ownership.ACQUIRES in rule.ownership else "nobody"


def _name(actor: str | None) -> str:
    return actor or "Nobody in particular"


def _listed(statuses: Iterable[PhaseStatus]) -> str:
    return ", ".join(status.value for status in statuses)


_ENDS: Final = frozenset(
    {PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.CANCELLED, PhaseStatus.ABANDONED, PhaseStatus.LOST}
)
_BY_OWNER: Final = Rule(frozenset(), is_final=True, ownership=Ownership.REQUIRES | Ownership.RELEASES)

TABLE: Final = StatusTable(
    {
        PhaseStatus.ACTIVE: Rule(_ENDS | {PhaseStatus.PAUSED}, is_final=False, ownership=Ownership.ACQUIRES),
        PhaseStatus.PAUSED: Rule(
            _ENDS | {PhaseStatus.ACTIVE}, is_final=False, ownership=Ownership.REQUIRES | Ownership.RELEASES
        ),
        PhaseStatus.SUCCEEDED: _BY_OWNER,
        PhaseStatus.FAILED: _BY_OWNER,
        PhaseStatus.CANCELLED: _BY_OWNER,
        PhaseStatus.ABANDONED: Rule(frozenset(), is_final=True, ownership=Ownership.OVERRIDES | Ownership.RELEASES),
        PhaseStatus.LOST: Rule(
            frozenset(), is_final=True, ownership=Ownership.OVERRIDES | Ownership.RELEASES, needs_evidence=True
        ),
    }
)

# What went wrong, for attribution and for backends; nobody else decides that by comparing statuses.
FAILURES: Final = frozenset({PhaseStatus.FAILED, PhaseStatus.LOST})

# Past the class, which may make any attribute raise.
_code_of: Final[Any] = SystemExit.__dict__["code"].__get__

# Where libraries keep the exceptions by which they cancel. None of them is imported here: who raised one has done so.
_CANCELLATIONS: Final = (
    ("asyncio.exceptions", "CancelledError"),
    ("trio", "Cancelled"),
    ("greenlet", "GreenletExit"),
)


# What says that an iterator has no more: the way every loop ends.
_ENDS_OF_ITERATORS: Final = (StopIteration, StopAsyncIteration)


def outcome_of(exception: BaseException | None) -> PhaseStatus:
    """Return how a phase ended that was left by `exception`, or by none; never raises.

    SUCCEEDED is also the end of an iterator, which a phase around `next(batches)` meets once an epoch; what Python
    makes of one that leaves a generator, a RuntimeError, is a failure. CANCELLED is what stops work from outside:
    KeyboardInterrupt, SystemExit, GeneratorExit and what asyncio, trio and greenlet cancel with. FAILED is every other
    Exception, so also `concurrent.futures.CancelledError`, which says that somebody else's work was cancelled; and any
    other BaseException, such as the panic of a library written in Rust: nothing unknown is taken for harmless. A group
    is CANCELLED if all that is in it is.
    """
    if exception is None or is_end_of_iterator(exception):
        return PhaseStatus.SUCCEEDED
    cancellations = _cancellations()
    pending = [exception]
    while pending:
        one = pending.pop()
        # Never isinstance(): that asks `__class__`, which an exception may have made raise.
        if issubclass(type(one), BaseExceptionGroup):
            pending.extend(BaseExceptionGroup.exceptions.__get__(one))
        elif not issubclass(type(one), cancellations):
            return PhaseStatus.FAILED
    return PhaseStatus.CANCELLED


def is_end_of_iterator(exception: BaseException) -> bool:
    """Return whether an exception says no more than that an iterator is at its end."""
    return issubclass(type(exception), _ENDS_OF_ITERATORS)


def session_status_of(outcome: BaseException | None) -> PhaseStatus:
    """Return how a session or a rank ended that `outcome` ended, or nothing did.

    An exit with status 0 is what a program does that is done; its open phases are CANCELLED all the same. The end of an
    iterator is a failure here: no loop is left that could take it.
    """
    if is_orderly_exit(outcome):
        return PhaseStatus.SUCCEEDED
    if outcome is not None and is_end_of_iterator(outcome):
        return PhaseStatus.FAILED
    return outcome_of(outcome)


def is_orderly_exit(outcome: BaseException | None) -> bool:
    """Whether `outcome` is a SystemExit with status 0."""
    return issubclass(type(outcome), SystemExit) and _code_of(outcome) in (None, 0)


def _cancellations() -> tuple[type[BaseException], ...]:
    found = (getattr(sys.modules.get(module), name, None) for module, name in _CANCELLATIONS)
    return (KeyboardInterrupt, SystemExit, GeneratorExit, *(kind for kind in found if isinstance(kind, type)))
