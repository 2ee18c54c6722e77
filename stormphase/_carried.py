"""What a phase's context is made of when it travels to another process, and how that is written: a dict of strings.

`traceparent` and `tracestate` are W3C Trace Context's, for whoever knows no more. `stormphase` is JSON with the rest:
which session and rank, which phase, and where records and journals go. In an environment the three are TRACEPARENT,
TRACESTATE and STORMPHASE_CARRIER. A carrier is for one's own workers: who can give one says where files are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from stormphase._environ import MAX_SHOWN_CHARS
from stormphase._model import RankIdentity
from stormphase._session_id import _checked_session_id
from stormphase.exceptions import ConfigurationError

CARRIER_VARIABLE: Final = "STORMPHASE_CARRIER"
KEY: Final = "stormphase"
TRACE_KEYS: Final = ("traceparent", "tracestate")
VERSION: Final = 1
MAX_ANCESTORS: Final = 64
MAX_PATH_CHARS: Final = 16_384
CUT: Final = "\N{HORIZONTAL ELLIPSIS}"

_SCOPE_ID: Final = re.compile(r"(?!0{16})[0-9a-f]{16}")
_FIX: Final = "Give what tracker.carrier() returned, or start the process with env=tracker.environment()."

_NUMBERS: Final = ("attempt", "rank", "local_rank", "world_size", "pid")
_MAYBE_NUMBERS: Final = ("local_world_size", "node_rank", "step", "level")
_MAYBE_TEXTS: Final = ("name", "correlation_id")
_TEXTS: Final = ("host", "launcher", "on_misuse")
_PLACES: Final = ("store", "journal", "capture")


@attrs.frozen(kw_only=True)
class Carried:
    """A phase's context, as one process gives it to another.

    Attributes:
        identity: session, attempt and rank of the process that gives it.
        pid: which process that is, on its own host.
        scope_ids: the phases that are open there, the outermost first; of many the innermost; none for the rank.
        path: the path of the innermost.
        step: the step that is set there.
        name: the job's name.
        correlation_id: what else the run is known by.
        level: below which level phases are shown only if they fail.
        on_misuse: what becomes of misuse.
        trace: `traceparent` and `tracestate` of the phase's span, or of the rank's; empty where there is no bridge.
        session_trace: those of the rank's span: a phase may be in a trace of its own.
        store: the arguments of the `SqliteStore` there, or None.
        journal: those of the `JournalOptions` there, or None.
        capture: those of the `CaptureOptions` there, or None.
        redact: the patterns and flags of what must not be stored.
    """

    identity: RankIdentity
    pid: int
    scope_ids: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    step: int | None = None
    name: str | None = None
    correlation_id: str | None = None
    level: int | None = None
    on_misuse: str = "raise"
    trace: Mapping[str, str] = attrs.field(factory=dict)
    session_trace: Mapping[str, str] = attrs.field(factory=dict)
    store: Mapping[str, Any] | None = None
    journal: Mapping[str, Any] | None = None
    capture: Mapping[str, Any] | None = None
    redact: Sequence[Any] = ()

    @property
    def launch(self) -> tuple[str, int, int]:
        """Session, attempt and rank."""
        return (self.identity.session_id, self.identity.attempt, self.identity.rank)

    def to_carrier(self) -> dict[str, str]:
        """Return it as strings by name."""
        identity = attrs.asdict(self.identity)
        rest = {
            "version": VERSION,
            **identity,
            "pid": self.pid,
            "scope_ids": list(self.scope_ids[-MAX_ANCESTORS:]),
            "path": list(_bounded(self.path)),
            "step": self.step,
            "name": self.name,
            "correlation_id": self.correlation_id,
            "level": self.level,
            "on_misuse": self.on_misuse,
            "session_trace": dict(self.session_trace),
            **{place: getattr(self, place) for place in _PLACES},
            "redact": list(self.redact),
        }
        return {**self.trace, KEY: json.dumps(rest, separators=(",", ":"))}

    @classmethod
    def of(cls, carrier: Mapping[str, str]) -> Carried | None:
        """Read what `to_carrier` wrote; None if it is empty, as that of a tracker that does not run.

        Raises:
            ConfigurationError: if it is not what a tracker wrote, or a newer release did.
        """
        try:
            text = carrier.get(KEY)
            trace = {name: str(carrier[name]) for name in TRACE_KEYS if carrier.get(name)}
        except AttributeError:
            raise _wrong(f"A carrier must be a mapping, not {type(carrier).__name__}.") from None
        if text is None:
            return None
        try:
            fields = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise _wrong(f"The carrier is {ascii(text)[:MAX_SHOWN_CHARS]}.") from None
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise _wrong("The carrier was written by another release of stormphase.")
        return cls._read(fields, trace)

    @classmethod
    def _read(cls, fields: dict[str, Any], trace: Mapping[str, str]) -> Carried:
        for names, kinds in (
            (_NUMBERS, (int,)),
            (_MAYBE_NUMBERS, (int, type(None))),
            (_TEXTS, (str,)),
            (_MAYBE_TEXTS, (str, type(None))),
            (_PLACES, (dict, type(None))),
            (("session_trace",), (dict,)),
            (("scope_ids", "path", "redact"), (list,)),
        ):
            for name in names:
                if type(fields.get(name, ...)) not in kinds:
                    raise _wrong(f"{name} of the carrier is {ascii(fields.get(name))[:MAX_SHOWN_CHARS]}.")
        for texts in (fields["scope_ids"], fields["path"], fields["session_trace"].values()):
            if not all(isinstance(text, str) for text in texts):
                raise _wrong("The carrier holds what is no text where there should be some.")
        if not all(map(_SCOPE_ID.fullmatch, fields["scope_ids"])) or bool(fields["scope_ids"]) > bool(fields["path"]):
            raise _wrong("The carrier names no phase that could be.")
        session_id = _checked_session_id(fields.get("session_id"), "carrier")  # It names a directory.
        identity = RankIdentity(
            session_id=session_id,
            **{each.name: fields[each.name] for each in attrs.fields(RankIdentity) if each.name != "session_id"},
        )
        return cls(
            identity=identity,
            scope_ids=tuple(fields["scope_ids"]),
            path=tuple(fields["path"]),
            trace=trace,
            session_trace={
                name: fields["session_trace"][name] for name in TRACE_KEYS if name in fields["session_trace"]
            },
            **{
                name: fields[name]
                for name in ("pid", "step", "name", "correlation_id", "level", "on_misuse", "redact", *_PLACES)
            },
        )

    def to_environment(self) -> dict[str, str]:
        """Return it as environment variables."""
        carrier = self.to_carrier()
        return {CARRIER_VARIABLE: carrier[KEY], **{name.upper(): value for name, value in self.trace.items()}}

    def environ_over(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return an environment in which the trace is that of the session; as it is where nothing says which."""
        return {**environ, **{name.upper(): value for name, value in self.session_trace.items()}}


def carrier_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the carrier that an environment has, or an empty one."""
    if not environ.get(CARRIER_VARIABLE):
        return {}
    names = {KEY: CARRIER_VARIABLE, **{name: name.upper() for name in TRACE_KEYS}}
    return {name: environ[variable] for name, variable in names.items() if environ.get(variable)}


def _bounded(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path's innermost names: an environment variable has its bounds."""
    kept: list[str] = []
    left = MAX_PATH_CHARS
    for name in reversed(path):
        left -= len(name)
        if left < 0 or len(kept) == MAX_ANCESTORS:
            kept.append(CUT)
            break
        kept.append(name)
    return tuple(reversed(kept))


def _wrong(problem: str) -> ConfigurationError:
    return ConfigurationError(problem, setting="carrier", fix=_FIX)
