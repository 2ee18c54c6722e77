"""Journals that a stranger made to keep a reader busy: each kind of any size, valid to the byte as far as that goes.

`KINDS` has one function each: given how many segments, it returns them. `hostile` makes a whole journal of a kind.
"""

from __future__ import annotations

import json
import marshal
import struct
from typing import TYPE_CHECKING, Any

from journal_sample import (
    FACTS,
    FAILED,
    NO_STEP,
    SEGMENT,
    SLOT,
    SUPERSEDED,
    bucket_row,
    journal,
    path_row,
    scope_id,
    strings,
    texts,
    totals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLOTS = (SEGMENT - 64) // SLOT
OTEL = {
    "version": 1,
    "trace_id": "1" * 32,
    "root_id": "2" * 16,
    "rank_id": "3" * 16,
    "flags": 3,
    "tracestate": "",
    "sampled": True,
    "keep_failures": True,
    "span_events": "all",
    "exceptions": True,
    "limits": {
        "attributes": 128,
        "attribute_chars": None,
        "events": 128,
        "links": 128,
        "event_attributes": 128,
        "link_attributes": 128,
        "event_attribute_chars": None,
    },
    "scope": ["stormphase", "0", "https://example.invalid"],
    "resource": {},
    "resource_dropped": 0,
    "root_attributes": {},
}
KINDS: dict[str, Callable[[int], list[bytearray]]] = {}


def hostile(kind: str, segments: int) -> bytes:
    """Return a journal of so many segments beside the first four."""
    made = KINDS[kind](segments)
    return bytes(journal(*made, facts={**FACTS, "attempt": 0, "rank": 0, "world_size": 1, "otel": OTEL}))


def kind(make: Callable[[int], list[bytearray]]) -> Callable[[int], list[bytearray]]:
    """Take note of one."""
    KINDS[make.__name__] = make
    return make


def filled(
    serial: int, blob: Any, numbers: Iterator[int], *, is_envelope: bool = True, state: int = 1, blobs_from: int = 0
) -> tuple[bytearray, list[dict[str, int]]]:
    """Return a segment whose slots all have the same blob, and their fields, to be changed before `put`."""
    text = b"" if blob is None else blob if isinstance(blob, bytes) else marshal.dumps(blob, 2)
    data = bytearray(SEGMENT)
    start = SEGMENT - len(text)
    data[start:] = text
    struct.pack_into("<QQQIIQ", data, 0, serial, 1 + 256 * state, 77, 0, 1, 0)
    struct.pack_into("<Q", data, 48, blobs_from or start)
    count = (start - 64) // SLOT
    fields = []
    for sequence in (next(numbers) for _ in range(count)):
        fields.append({"sequence": sequence, "blob": (start | len(text) << 16) if text else 0})
        fields[-1]["flags"] = 8 if is_envelope and text else 0
    return data, fields


def put(data: bytearray, fields: list[dict[str, int]]) -> bytearray:
    """Write the slots."""
    for row, each in enumerate(fields):
        sequence = each["sequence"]
        word = each.get("word", 0 if "ended" not in each else sequence)
        struct.pack_into(
            "<qQqIIIIQqqQ",
            data,
            64 + row * SLOT,
            each.get("entered", 2_000 + sequence),
            each.get("parent", 0),
            NO_STEP,
            each.get("path", 0),
            each.get("lane", 1),
            each["blob"],
            each["flags"],
            sequence,
            each.get("ended", 0),
            each.get("on_top", 0),
            word,
        )
    return data


def made(
    segments: int, blob: Any, change: Callable[[dict[str, int]], None], *, first: int = 2, **options: Any
) -> list[bytearray]:
    """Return segments whose slots have all the same blob, each changed by `change`."""
    numbers = iter(range(1, 2**40))
    found = []
    for serial in range(first, first + segments):
        data, fields = filled(serial, blob(serial) if callable(blob) else blob, numbers, **options)
        for each in fields:
            change(each)
        found.append(put(data, fields))
    return found


def ended(each: dict[str, int]) -> None:
    """Let it have ended."""
    each["ended"] = 5_000 + each["sequence"]


@kind
def names_in_envelopes(segments: int) -> list[bytearray]:
    """Open phases whose names stand in envelopes, each the parent of the next."""
    return made(segments, {"name": "n" * 200}, lambda each: each.update(parent=each["sequence"] - 1))


@kind
def ended_names_in_envelopes(segments: int) -> list[bytearray]:
    """The same, ended."""
    return made(
        segments,
        {"name": "n" * 200},
        lambda each: each.update(parent=each["sequence"] - 1, ended=5_000 + each["sequence"]),
    )


@kind
def long_names_in_envelopes(segments: int) -> list[bytearray]:
    """Names of eight thousand characters, in a chain."""
    return made(segments, {"name": "n" * 8_000}, lambda each: each.update(parent=each["sequence"] - 1))


@kind
def names_to_escape(segments: int) -> list[bytearray]:
    """Names that no terminal may be given as they are, in a chain."""
    return made(segments, {"name": "\x1b[2J\u202e" * 100}, lambda each: each.update(parent=each["sequence"] - 1))


@kind
def whole_paths_in_envelopes(segments: int) -> list[bytearray]:
    """Paths as lists, with all the names that an envelope has room for."""
    return made(segments, {"name": "n", "path": ["n"] * 1_300}, lambda each: None)


@kind
def whole_paths_of_ended(segments: int) -> list[bytearray]:
    """The same, ended."""
    return made(segments, {"name": "n", "path": ["n"] * 1_300}, ended)


@kind
def a_chain_of_strings(segments: int) -> list[bytearray]:
    """A table of strings in which each path is below the one before, and phases at all of them."""
    half = max(1, segments // 4)
    count = 0
    tables = []
    for serial in range(1, 1 + half):
        tables.append(strings(serial, *((count + entry, "n" * 8) for entry in range(1_000))))
        count += 1_000
    phases = made(
        segments - half,
        None,
        lambda each: each.update(path=1 + each["sequence"] % min(count, 8_192), ended=5_000 + each["sequence"]),
        first=1 + half,
    )
    return tables + phases


@kind
def a_chain_of_long_strings(segments: int) -> list[bytearray]:
    """The same, of names as long as they may be, and open phases at the ends."""
    half = max(1, segments // 2)
    tables = [
        strings(serial, *(((serial - 1) * 15 + entry, "n" * 1_024) for entry in range(15)))
        for serial in range(1, 1 + half)
    ]
    phases = made(
        segments - half, None, lambda each: each.update(path=1 + each["sequence"] % (half * 15)), first=1 + half
    )
    return tables + phases


@kind
def open_on_one_lane(segments: int) -> list[bytearray]:
    """Open phases of one lane, of which each younger one says that it stands under none."""
    return made(segments, None, lambda each: None)


@kind
def open_on_one_lane_with_envelopes(segments: int) -> list[bytearray]:
    """The same, with an envelope that has to be read to know whether they were paused."""
    return made(segments, {"attributes": {f"k{number}": number for number in range(300)}}, lambda each: None)


@kind
def open_and_ended_on_one_lane(segments: int) -> list[bytearray]:
    """Old open phases, and young ones that prove them over."""
    half = segments * SLOTS // 2
    return made(segments, None, lambda each: None if each["sequence"] < half else ended(each))


@kind
def open_on_many_lanes(segments: int) -> list[bytearray]:
    """A lane for each."""
    return made(segments, None, lambda each: each.update(lane=each["sequence"]))


@kind
def tasks(segments: int) -> list[bytearray]:
    """A lane for each, with the name of a task."""
    return made(
        segments, {"name": "n", "task": "t" * 200}, lambda each: each.update(lane=each["sequence"], flags=8 | 2)
    )


@kind
def circles(segments: int) -> list[bytearray]:
    """Each the parent of the one before, so that nothing has a beginning."""
    return made(segments, {"name": "n"}, lambda each: each.update(parent=each["sequence"] + 1))


@kind
def one_parent(segments: int) -> list[bytearray]:
    """All below the first."""
    return made(segments, {"name": "n"}, lambda each: each.update(parent=1 if each["sequence"] > 1 else 0))


@kind
def parents_in_envelopes(segments: int) -> list[bytearray]:
    """Parents given by scope id, each the next one's, on lanes of their own."""
    return made(
        segments,
        lambda serial: {"name": "n", "parent": scope_id((serial - 2) * 220)},
        lambda each: each.update(lane=each["sequence"]),
    )


@kind
def one_number(segments: int) -> list[bytearray]:
    """One phase in all slots."""
    return made(segments, None, lambda each: each.update(sequence=1, ended=5_000))


@kind
def a_few_numbers_open_and_ended(segments: int) -> list[bytearray]:
    """Each phase in many slots, open in some and ended in others."""

    def change(each: dict[str, int]) -> None:
        number = each["sequence"]
        each["sequence"] = 1 + number % 100
        if number % 2:
            ended(each)

    return made(segments, None, change)


@kind
def superseded_by_nothing(segments: int) -> list[bytearray]:
    """Phases that are said to stand elsewhere."""
    return made(segments, None, lambda each: each.update(word=each["sequence"] + (SUPERSEDED << 56)))


@kind
def failures_in_a_circle(segments: int) -> list[bytearray]:
    """Each FAILED by the next segment's first, with a long traceback."""
    return made(
        segments,
        lambda serial: {
            "name": "n",
            "error": {"type": "E", "message": "m" * 500, "traceback": "t\n" * 500, "root": scope_id(serial * 200)},
        },
        lambda each: each.update(
            parent=each["sequence"] - 1, ended=10**6 - each["sequence"], word=each["sequence"] + (FAILED << 56)
        ),
    )


@kind
def large_errors(segments: int) -> list[bytearray]:
    """Each FAILED for itself, with as much text as there is room for."""
    return made(
        segments,
        {"name": "n", "error": {"type": "E" * 3_000, "message": "\x1b" * 4_000, "traceback": "t\n" * 2_000}},
        lambda each: each.update(ended=5_000 + each["sequence"], word=each["sequence"] + (FAILED << 56)),
    )


@kind
def retries(segments: int) -> list[bytearray]:
    """Each the retry of one that is the retry of another."""
    return made(
        segments,
        lambda serial: {"name": "n", "attempt": serial, "retry_of": scope_id((serial - 2) * 200)},
        lambda each: each.update(ended=5_000 + each["sequence"]),
    )


@kind
def deep_attributes(segments: int) -> list[bytearray]:
    """Values as deep as they may be, in each other."""
    value: Any = 1
    for _ in range(28):
        value = {"k": [value]} if isinstance(value, int) else {"k": value}
    return made(segments, {"name": "n", "attributes": {f"k{number}": value for number in range(20)}}, ended)


@kind
def too_deep_attributes(segments: int) -> list[bytearray]:
    """Values that are deeper."""
    return made(segments, b"[\x01\0\0\0" * 1_200 + b"N", ended)


@kind
def many_attributes(segments: int) -> list[bytearray]:
    """A thousand on each of the few that share a segment with them, and its blob with each other."""
    return made(segments, {"name": "n", "attributes": {f"k{number}": number for number in range(600)}}, ended)


@kind
def many_attributes_of_open(segments: int) -> list[bytearray]:
    """The same, open."""
    return made(
        segments, {"name": "n", "attributes": {f"k{number}": number for number in range(600)}}, lambda each: None
    )


@kind
def attributes_of_all_names(segments: int) -> list[bytearray]:
    """Other names in each segment."""
    return made(
        segments,
        lambda serial: {"name": "n", "attributes": {f"k{serial}-{number}": number for number in range(600)}},
        ended,
    )


@kind
def long_attributes(segments: int) -> list[bytearray]:
    """One of eight thousand characters that have to be escaped."""
    return made(segments, {"name": "n", "attributes": {"k": "\x1b" * 8_000}}, ended)


@kind
def paused(segments: int) -> list[bytearray]:
    """Phases that were paused, as an envelope at the end of the segment says."""
    return made(segments, {"paused_ns": 5, "name": "n" * 3_000}, ended)


@kind
def overlapping_pauses(segments: int) -> list[bytearray]:
    """Blobs as long as the segment, with the word for a pause at the end."""

    def change(each: dict[str, int]) -> None:
        each["blob"] = 64 | (SEGMENT - 64) << 16
        ended(each)

    return made(segments, {"paused_ns": 5}, change)


@kind
def distinct_names_in_envelopes(segments: int) -> list[bytearray]:
    """Blobs of their own for all."""
    found = []
    number = 1
    for serial in range(2, 2 + segments):
        data, fields = filled(serial, None, iter(range(number, number + SLOTS)))
        start, kept = SEGMENT, []
        for row, each in enumerate(fields):
            blob = marshal.dumps({"name": f"name {number}"}, 2)
            start -= len(blob)
            if start < 64 + (row + 1) * SLOT:
                break
            data[start : start + len(blob)] = blob
            each.update(blob=start | len(blob) << 16, flags=8, parent=each["sequence"] - 1)
            struct.pack_into("<Q", data, 48, start)
            kept.append(each)
            number += 1
        found.append(put(data, kept))
    return found


@kind
def totals_of_all_paths(segments: int) -> list[bytearray]:
    """A row of a path of its own, or of its buckets, wherever there is room."""
    found = []
    path = 0
    for serial in range(1, 1 + segments):
        rows = []
        for _ in range(63):
            path += 1
            rows += [path_row(path, 15, 10, 10), bucket_row(path, path % 1_000, *([1] * 15))]
        found.append(totals(serial, *rows))
    return found


@kind
def totals_of_one_path(segments: int) -> list[bytearray]:
    """All rows of one."""
    rows = [bucket_row(1, number * 8 % 1_000, *([2**60] * 15)) for number in range(126)]
    return [totals(serial, *rows) for serial in range(1, 1 + segments)]


@kind
def dumps_of_stacks(segments: int) -> list[bytearray]:
    """As many frames as there is room for."""
    threads = [{"thread_id": 77, "name": "\x1b" * 40, "frames": ["f"] * 300} for _ in range(9)]
    text = json.dumps({"at_ns": 3_000, "sequence": 1, "limit_ns": 5, "threads": threads}).encode()
    return [texts(serial, text) for serial in range(1, 1 + segments)]


@kind
def deep_dumps_of_stacks(segments: int) -> list[bytearray]:
    """JSON that is deeper than a parser goes."""
    return [texts(serial, b"[" * 16_000) for serial in range(1, 1 + segments)]


@kind
def names_of_threads(segments: int) -> list[bytearray]:
    """Strings of no length."""
    return [strings(serial, *[(-1, "")] * 2_000) for serial in range(1, 1 + segments)]


@kind
def bad_times(segments: int) -> list[bytearray]:
    """Phases that end before they begin, or never began."""
    return made(segments, None, lambda each: each.update(entered=2**62 + each["sequence"], ended=5))


@kind
def bad_words(segments: int) -> list[bytearray]:
    """Slots whose last word is another's."""
    return made(segments, None, lambda each: each.update(word=7))


@kind
def serials_alike(segments: int) -> list[bytearray]:
    """Segments that are all the same use of the file."""
    found = made(segments, {"name": "n"}, ended)
    for data in found:
        struct.pack_into("<Q", data, 0, 5)
    return found


@kind
def all_at_the_deepest_path(segments: int) -> list[bytearray]:
    """A thousand names in each path, of which all phases are."""
    table = [strings(1, *((entry, "n") for entry in range(1_000)))]
    return table + made(segments - 1, None, lambda each: each.update(path=1_000, ended=5_000 + each["sequence"]))


@kind
def all_open_at_the_deepest_path(segments: int) -> list[bytearray]:
    """The same, open."""
    table = [strings(1, *((entry, "n") for entry in range(1_000)))]
    return table + made(segments - 1, None, lambda each: each.update(path=1_000, lane=each["sequence"]))


@kind
def open_on_many_lanes_under_a_deep_one(segments: int) -> list[bytearray]:
    """Half of it open in a chain, and half open on lanes of their own under its end, so that all are above each."""
    half = segments * SLOTS // 2

    def change(each: dict[str, int]) -> None:
        is_of_chain = each["sequence"] <= half
        each.update(parent=each["sequence"] - 1 if is_of_chain else half, lane=1 if is_of_chain else each["sequence"])

    return made(segments, None, change)


@kind
def failures_by_one_another(segments: int) -> list[bytearray]:
    """Each failed by the next one, as it says."""

    def blob(serial: int) -> dict[str, Any]:
        return {"error": {"type": "BrokenProcessPool", "message": "", "root": scope_id(serial)}}

    return made(
        segments,
        blob,
        lambda each: each.update(ended=5_000 + each["sequence"], word=each["sequence"] | FAILED << 56),
    )


@kind
def stacks_of_open_phases(segments: int) -> list[bytearray]:
    """Half of it dumps, all of one phase, and half phases that are open on its thread."""
    threads = [{"thread_id": 77, "name": "t", "frames": ["f" * 50] * 200}]
    text = json.dumps({"at_ns": 3_000, "sequence": 1, "limit_ns": 5, "threads": threads}).encode()
    half = segments // 2
    return [texts(serial, text) for serial in range(1, 1 + half)] + made(
        segments - half, {"name": "n"}, lambda each: each.update(lane=each["sequence"]), first=1 + half
    )
