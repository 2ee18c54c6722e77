"""The journal's first segment: whose it is, when it was last alive, and how it ended."""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._clock import ClockAnchor
from stormphase._model import EndKind, ProcessIdentity, RankIdentity
from stormphase._status import TABLE
from stormphase.exceptions import JournalDamagedError, JournalIncompleteError, JournalVersionError
from stormphase.journal import _format
from stormphase.journal._image import EndNote

if TYPE_CHECKING:
    from stormphase.journal._damage import Damage

_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")
_STATE: Final = struct.Struct("<qQQQQQqQQ")  # from STEP to OWNERS_UNSENT
_SHORTEST: Final = _format.STEP + _STATE.size
_END_KINDS: Final = {kind.value: kind for kind in EndKind}
_ENDS: Final = {status.value: status for status, rule in TABLE.rules.items() if rule.is_final}
_ID: Final = re.compile(r"[0-9a-f]{16}")
_NOT_OURS: Final = "Nothing can be learnt from it; look at the other ranks' journals."


@attrs.frozen(kw_only=True)
class Header:
    """What the first segment says; see `JournalImage` for what the names mean."""

    id_base: int
    identity: RankIdentity
    process: ProcessIdentity
    facts: dict[str, Any]
    anchor: ClockAnchor
    started_ns: int
    heartbeat_ns: int
    heartbeat_wall_ns: int
    step: int | None
    unwritten: int
    end_note: EndNote | None
    stop_signal: int | None
    stop_asked_ns: int | None
    cleared_unsent: int
    owners_are_unsent: bool
    was_lost: bool


def check(data: bytes, file: str) -> None:
    """See that these are the first bytes of a journal that can be read.

    Raises:
        JournalIncompleteError: if its process has not finished creating it.
        JournalDamagedError: if it is no journal, or too little of one.
        JournalVersionError: if it is too new.
    """
    if data[: len(_format.MAGIC)] == bytes(len(data[: len(_format.MAGIC)])):
        problem = "its process is just creating it, or died while it did."
        raise JournalIncompleteError(problem, file=file, fix="Try again in a second.")
    if not data.startswith(_format.MAGIC[: len(data)]):
        raise JournalDamagedError("it does not begin as a journal does.", file=file, fix=_NOT_OURS)
    if len(data) < _SHORTEST:
        raise JournalDamagedError(f"only {len(data)} bytes are left of it.", file=file, fix=_NOT_OURS)
    _, version, segment, slot = struct.unpack_from("<8sIII", data)
    (complete,) = _U64.unpack_from(data, _format.IS_COMPLETE)
    if complete == 0:
        problem = "its process is just creating it, or died while it did."
        raise JournalIncompleteError(problem, file=file, fix="Try again in a second.")
    if version > _format.VERSION:
        raise JournalVersionError(
            f"it has version {version} of the format, and this release of stormphase knows {_format.VERSION}.",
            file=file,
            fix="Read it with the release that the job ran with, or a newer one: pip install --upgrade stormphase.",
            version=version,
            supported=_format.VERSION,
        )
    if (version, segment, slot, complete) != (_format.VERSION, _format.SEGMENT, _format.SLOT, 1):
        raise JournalDamagedError("its first words are damaged.", file=file, fix=_NOT_OURS)


def parse_header(data: bytes, file: str, damage: Damage) -> Header:
    """Return what the first segment says; `data` has passed `check`.

    Raises:
        JournalDamagedError: if its facts are not what was written: then nobody knows whose journal it is.
    """
    (_, _, _, _, _, id_base, anchor_ns, anchor_wall_ns, pid, started, namespace, boot_id, length, checksum) = (
        _format.HEADER.unpack_from(data)
    )
    facts = _json_object(data, _format.FACTS_AT, length, _format.MAX_FACTS, checksum)
    identity = None if facts is None else _identity(facts)
    if facts is None or identity is None:
        raise JournalDamagedError("the facts that say whose it is are damaged.", file=file, fix=_NOT_OURS)
    step, unwritten, _, _, end_word, signal, asked_ns, cleared_unsent, owners_unsent = _STATE.unpack_from(
        data, _format.STEP
    )
    anchor = ClockAnchor(monotonic_ns=anchor_ns, wall_ns=anchor_wall_ns, uncertainty_ns=0)
    started_ns = _int(facts.get("started_ns"), anchor_ns)
    beats = [_format.HEARTBEAT.unpack_from(data, offset) for offset in _format.HEARTBEATS]
    beat_ns, beat_wall_ns, count = max(beats, key=lambda beat: beat[2])
    return Header(
        id_base=id_base,
        identity=identity,
        process=ProcessIdentity(
            host=identity.host,
            boot_id=_dashed(boot_id.hex()) if any(boot_id) else None,
            pid=pid,
            started=started or None,
            pid_namespace=namespace or None,
        ),
        facts=facts,
        anchor=anchor,
        started_ns=started_ns,
        heartbeat_ns=max(beat_ns, started_ns) if count else started_ns,
        heartbeat_wall_ns=beat_wall_ns if count else anchor.to_wall_ns(started_ns),
        step=None if step == _format.NO_STEP else step,
        unwritten=unwritten,
        end_note=_end_note(data, end_word, damage),
        stop_signal=signal or None,
        stop_asked_ns=asked_ns if signal else None,
        cleared_unsent=cleared_unsent,
        owners_are_unsent=owners_unsent != 0,
        was_lost=_U64.unpack_from(data, _format.LOST_NS)[0] != 0,
    )


def _json_object(data: bytes, offset: int, length: int, limit: int, checksum: int) -> dict[str, Any] | None:
    """Return an object that is exactly what was written, or None."""
    text = data[offset : offset + length]
    if length > limit or len(text) < length or zlib.crc32(text) != checksum:
        return None
    return json_object(text)


def json_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object that is `text`, or None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # of a stranger's making, as the checksum fits
        return None
    return value if type(value) is dict else None


def _identity(facts: dict[str, Any]) -> RankIdentity | None:
    numbers = [facts.get(name) for name in ("attempt", "rank", "local_rank", "world_size")]
    optional = [facts.get(name) for name in ("local_world_size", "node_rank")]
    texts = [facts.get(name) for name in ("session_id", "host", "launcher")]
    if (
        not all(is_int64(number) for number in numbers)
        or not all(number is None or is_int64(number) for number in optional)
        or not all(type(text) is str for text in texts)
    ):
        return None
    attempt, rank, local_rank, world_size = (_int(number, 0) for number in numbers)
    session_id, host, launcher = (str(text) for text in texts)
    return RankIdentity(
        session_id=session_id,
        attempt=attempt,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=optional[0],
        node_rank=optional[1],
        host=host,
        launcher=launcher,
    )


def _end_note(data: bytes, word: int, damage: Damage) -> EndNote | None:
    if not word:
        return None
    note = _json_object(data, _format.END_NOTE_AT, word & 0xFFFFFFFF, _format.MAX_END_NOTE, word >> 32)
    kind = None if note is None else _END_KINDS.get(str(note.get("kind")))
    if note is None or kind is None or not is_int64(note.get("ended_ns")):
        damage.note("the note of how the process ended is damaged")
        return None
    return EndNote(
        kind=kind,
        ended_ns=note["ended_ns"],
        error_type=text_or_none(note.get("type")),
        error_message=text_or_none(note.get("message")),
        signal=int_or_none(note.get("signal")),
        root_cause_scope_id=id_or_none(note.get("root")),
        status=_ENDS.get(str(note.get("status"))),
    )


def text_or_none(value: object) -> str | None:
    """Return a string as it is, and None for anything else."""
    return value if type(value) is str else None


def id_or_none(value: object) -> str | None:
    """Return a scope id as it is, and None for anything else."""
    return value if type(value) is str and _ID.fullmatch(value) else None


def is_int64(value: object) -> bool:
    """Whether it is an integer of at most 64 bits; a stranger's may have thousands of digits."""
    return type(value) is int and -(2**63) <= value < 2**63


def int_or_none(value: Any) -> int | None:
    """Return an integer of at most 64 bits as it is, and None for anything else."""
    return value if is_int64(value) else None


def _int(value: Any, default: int) -> int:
    return value if is_int64(value) else default


def _dashed(digits: str) -> str:
    """Return 32 hex digits as Linux writes a boot id."""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
