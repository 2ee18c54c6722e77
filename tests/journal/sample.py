"""Builds journals byte by byte, as docs/journal-format.md has them, to test the reader on what that page says."""

from __future__ import annotations

import json
import marshal
import struct
import zlib
from typing import Any

SEGMENT = 16_384
SLOT = 72
NO_STEP = -(2**63)
STRIDE = 0x9E3779B97F4A7C15
BASE = 0x0123456789ABCDEF
STARTED_NS = 1_000
FACTS = {
    "session_id": "a-session",
    "attempt": 1,
    "rank": 3,
    "local_rank": 1,
    "world_size": 8,
    "local_world_size": 2,
    "node_rank": 1,
    "host": "node-1",
    "launcher": "torchrun",
    "name": "resnet",
    "started_ns": STARTED_NS,
    "main_thread_id": 77,
    "forked_from": None,
    "stormphase": "0.1",
    "otel": None,
}
PHASES, STRINGS, TOTALS, STACKS = 1, 2, 3, 4
UNUSED, IN_USE, FOLDED, CLEARING = 0, 1, 2, 3
SUCCEEDED, FAILED, CANCELLED, ABANDONED, SUPERSEDED, VOID = 0, 1, 2, 3, 254, 255


def scope_id(sequence: int) -> str:
    """Return the scope id of the sample's phase of that number."""
    return f"{(BASE + sequence * STRIDE) % 2**64:016x}"


class Phases:
    """One segment of phases, filled slot by slot."""

    def __init__(
        self,
        serial: int,
        *,
        state: int = IN_USE,
        thread_id: int = 77,
        name: int = 0,
        flags: int = 1,
        discarded: int = 0,
    ) -> None:
        self.data = bytearray(SEGMENT)
        struct.pack_into("<QQQIIQ", self.data, 0, serial, 1 + 256 * state, thread_id, name, flags, discarded)
        self.at = 64
        self.blobs_from = SEGMENT

    def add(
        self,
        sequence: int,
        *,
        path: int = 0,
        parent: int = 0,
        entered: int = 2_000,
        ended: int | None = None,
        status: int = SUCCEEDED,
        step: int = NO_STEP,
        lane: int = 1,
        on_top: int = 0,
        flags: int = 0,
        attributes: dict[str, Any] | None = None,
        envelope: dict[str, Any] | None = None,
        word: int | None = None,
    ) -> int:
        """Write one phase, ended if it has an end or a status of its own; return the slot's offset."""
        blob = b""
        if envelope is not None:
            flags |= 8
            blob = marshal.dumps(envelope, 2)
        elif attributes is not None:
            blob = marshal.dumps(attributes, 2)
        self.blobs_from -= len(blob)
        self.data[self.blobs_from : self.blobs_from + len(blob)] = blob
        struct.pack_into("<Q", self.data, 48, self.blobs_from)
        if word is None:
            word = 0 if ended is None and status == SUCCEEDED else sequence + (status << 56)
        slot = self.at
        struct.pack_into(
            "<qQqIIHHIQqqQ",
            self.data,
            slot,
            entered,
            parent,
            step,
            path,
            lane,
            self.blobs_from if blob else 0,
            len(blob),
            flags,
            sequence,
            ended or 0,
            on_top,
            word,
        )
        self.at += SLOT
        return slot

    def skip(self) -> None:
        """Leave a slot empty."""
        self.at += SLOT


def strings(serial: int, *entries: tuple[int, str], kind: int = STRINGS, state: int = IN_USE) -> bytearray:
    """Return a segment of strings: each with the number of its parent, or -1 for a thread's name."""
    text = b""
    for parent, name in entries:
        data = name.encode("utf-8", "surrogatepass")
        text += struct.pack("<II", parent % 2**32, len(data)) + data
        text += bytes(-len(text) % 8)
    return texts(serial, text, kind=kind, state=state)


def texts(serial: int, text: bytes, *, kind: int = STACKS, state: int = IN_USE) -> bytearray:
    """Return a segment that holds so many bytes after its length."""
    data = bytearray(SEGMENT)
    struct.pack_into("<QQ", data, 0, serial, kind + 256 * state)
    struct.pack_into("<Q", data, 56, len(text))
    data[64 : 64 + len(text)] = text
    return data


def totals(serial: int, *rows: list[int], state: int = IN_USE) -> bytearray:
    """Return a segment of totals; rows are made by `path_row` and `bucket_row`."""
    data = bytearray(SEGMENT)
    struct.pack_into("<QQ", data, 0, serial, TOTALS + 256 * state)
    for index, row in enumerate(rows):
        struct.pack_into(f"<{len(row)}Q", data, 128 + 128 * index, *(value % 2**64 for value in row))
    return data


def path_row(path: int, count: int, total: int, own: int, *others: int) -> list[int]:
    """Return the first words of a path's row; `others`: failed, least, greatest, paused, cancelled, abandoned, ..."""
    return [path + 2**32, count, total, own, *others]


def bucket_row(path: int, first: int, *counts: int) -> list[int]:
    """Return a row of buckets from `first` on."""
    return [path + 2 * 2**32 + first * 2**40, *counts]


def journal(
    *segments: Phases | bytearray | None,
    facts: object = None,
    end_note: dict[str, Any] | bytes | None = None,
    beats: tuple[tuple[int, int, int], ...] = ((5_000, 6_000, 1), (0, 0, 0)),
    folds: int = 0,
    redo: tuple[tuple[int, int], ...] = (),
    step: int = NO_STEP,
    unwritten: int = 0,
    signal: tuple[int, int] = (0, 0),
    cleared_unsent: int = 0,
    owners_unsent: int = 0,
    allocated: int | None = None,
    version: int = 1,
    complete: int = 1,
) -> bytearray:
    """Return a whole journal. Segments stand from number 4 on; None is one that was never used."""
    text = json.dumps(FACTS if facts is None else facts).encode() if not isinstance(facts, bytes) else facts
    data = bytearray(4 * SEGMENT)
    struct.pack_into("<8sIIIIQqq", data, 0, b"\x89SPJ\r\n\x1a\n", version, SEGMENT, SLOT, 0, BASE, 100, 1_000_100)
    struct.pack_into("<QQQ16sII", data, 48, 4_242, 99, 4_026_531_836, bytes(range(16)), len(text), zlib.crc32(text))
    struct.pack_into("<Q", data, 96, complete)
    for index, beat in enumerate(beats):
        struct.pack_into("<qqQ", data, 128 + 24 * index, *beat)
    struct.pack_into("<qQQ", data, 176, step, unwritten, folds)
    struct.pack_into("<Q", data, 200, 4 + len(segments) if allocated is None else allocated)
    struct.pack_into("<QqQQ", data, 216, *signal, cleared_unsent, owners_unsent)
    data[1_024 : 1_024 + len(text)] = text
    if end_note is not None:
        note = end_note if isinstance(end_note, bytes) else json.dumps(end_note).encode()
        struct.pack_into("<Q", data, 208, zlib.crc32(note) << 32 | len(note))
        data[12_288 : 12_288 + len(note)] = note
    for index, (offset, value) in enumerate(redo):
        struct.pack_into("<QQ", data, SEGMENT + 16 + 16 * index, offset, value % 2**64)
    struct.pack_into("<Q", data, SEGMENT, len(redo))
    for segment in segments:
        data += bytes(SEGMENT) if segment is None else segment.data if isinstance(segment, Phases) else segment
    return data


def small() -> bytearray:
    """Return a small journal that has one of everything."""
    names = strings(
        1,
        (0, "train"),
        (1, "step"),
        (2, "forward"),
        (2, "all_reduce"),
        (-1, "MainThread"),
        (-1, "loader \u2713"),
        (0, "load"),
    )
    main = Phases(2, name=5)
    main.add(1, path=1, entered=2_000, attributes={"epochs": 3, "name": "r\u00e9snet"})
    for step in range(6):
        first = 3 + 3 * step
        at = 3_000 + 1_000 * step
        main.add(first, path=2, parent=1, entered=at, ended=at + 900, step=step, on_top=500)
        main.add(first + 1, path=3, parent=first, entered=at + 100, ended=at + 300, step=step)
        status = FAILED if step == 4 else SUCCEEDED
        error = {"error": {"type": "ValueError", "message": "no", "traceback": None, "root": scope_id(first + 2)}}
        main.add(
            first + 2,
            path=4,
            parent=first,
            entered=at + 400,
            ended=at + 700,
            step=step,
            status=status,
            flags=1,
            envelope=error if status else None,
        )
    main.add(21, path=2, parent=1, entered=9_500, step=6)
    main.add(
        22,
        path=4,
        parent=21,
        entered=9_600,
        step=6,
        flags=1,
        envelope={"attributes": {"bytes": 4_096}, "late": {"bytes": 1}},
    )
    main.add(23, path=3, parent=21, entered=9_590, status=VOID)
    loader = Phases(3, thread_id=88, name=6, flags=0)
    loader.skip()
    loader.add(30, path=7, entered=2_500, lane=2)
    loader.add(31, parent=30, entered=2_600, lane=2, ended=2_700, envelope={"name": "batch-17"})
    loader.add(32, parent=30, entered=2_800, lane=2, envelope={"name": "batch-18"})
    loader.add(
        33,
        path=7,
        parent=1,
        entered=3_000,
        lane=3,
        flags=2 | 4,
        envelope={"task": "t", "paused_ns": 5, "paused_since_ns": 3_100},
    )
    moved = Phases(4, flags=2, thread_id=0)
    moved.add(
        40,
        path=7,
        entered=2_100,
        lane=4,
        envelope={"thread_id": 99, "thread_name": "old", "is_main": False, "attributes": {"a": [1]}},
    )
    old = Phases(5, state=FOLDED, name=5, discarded=2)
    old.add(2, path=2, parent=1, entered=2_010, ended=2_020, flags=2**24)
    rows = totals(
        6,
        path_row(2, 3, 30, 21, 1, 5, 15, 2, 1, 0, 1),
        bucket_row(2, 60, 1, 1),
        path_row(0, 0, 0, 0),
    )
    stacks = texts(
        7,
        json.dumps(
            {
                "at_ns": 9_900,
                "sequence": 22,
                "limit_ns": 5,
                "threads": [{"thread_id": 77, "name": "MainThread", "frames": ["a", "b"]}],
            }
        ).encode(),
    )
    return journal(
        names,
        main,
        loader,
        moved,
        None,
        old,
        rows,
        stacks,
        step=6,
        beats=((9_000, 1_009_000, 3), (9_800, 1_009_800, 4)),
    )


TINY_MAIN = 5


def tiny() -> bytearray:
    """Return a journal with one of everything that is as small as can be; phases of lane 1 stand in segment 5."""
    names = strings(1, (0, "train"), (1, "step"), (-1, "Main"))
    main = Phases(2, name=3)
    main.add(1, path=1, entered=2_000, attributes={"e": 3, "t": "\u00e9"})
    main.add(2, path=2, parent=1, entered=3_000, ended=3_900, step=1, on_top=500)
    main.add(3, path=2, parent=1, entered=4_000, ended=4_900, step=2, status=FAILED, envelope={"paused_ns": 7})
    main.add(4, parent=1, entered=9_500, step=3, envelope={"name": "x", "attributes": {"a": [1, None, 2.5]}})
    moved = Phases(3, flags=2, thread_id=0)
    moved.add(6, path=1, entered=2_100, lane=4, envelope={"thread_id": 99, "thread_name": "old"})
    old = Phases(4, state=FOLDED, name=3)
    old.add(5, path=2, parent=1, entered=2_010, ended=2_020, flags=2**24)
    rows = totals(5, path_row(2, 2, 30, 21, 1, 5, 15, 2), bucket_row(2, 60, 1, 1))
    stacks = texts(6, json.dumps({"at_ns": 9, "sequence": 4, "limit_ns": 5, "threads": []}).encode())
    return journal(names, main, moved, old, rows, stacks, step=3, end_note={"kind": "clean", "ended_ns": 9_900})
