"""Reads a journal at rest, by docs/journal-format.md alone: marshal is safe here, as the tests wrote the file."""

import json
import marshal
import struct

SEGMENT, END = 16_384, {0: "succeeded", 1: "failed", 2: "cancelled", 3: "abandoned"}


def _word(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def _segments(data, kind):
    used = [at for at in range(4 * SEGMENT, _word(data, 200) * SEGMENT, SEGMENT) if _word(data, at + 8) >> 8 in (1, 2)]
    return sorted((at for at in used if _word(data, at + 8) % 256 == kind), key=lambda at: _word(data, at))


def _read_paths(data):
    paths = [("(other)",)]
    for start in _segments(data, 2):
        at, end = start + 64, start + 64 + _word(data, start + 56)
        while at < end:
            parent, length = struct.unpack_from("<II", data, at)
            name = (data[at + 8 : at + 8 + length].decode("utf-8", "surrogatepass"),)
            paths.append((paths[parent] + name) if 0 < parent < len(paths) else name)
            at += 8 + length + -length % 8
    return paths


def _read_slots(data):
    found = {}
    for start in _segments(data, 1):
        for at in range(start + 64, start + _word(data, start + 48) - 71, 72):
            slot = struct.unpack_from("<qQqIIHHIQqqQ", data, at)
            is_folded, is_over = _word(data, start + 8) >> 8 == 2, slot[11] != 0
            if slot[8] and slot[11] >> 56 < 254 and (is_over or not is_folded):
                value = marshal.loads(data[start + slot[5] : start + SEGMENT]) if slot[6] else {}  # noqa: S302
                rank = (is_over, _word(data, start), at, is_folded, slot)
                found[slot[8]] = max(found.get(slot[8], rank), (*rank, value if slot[7] & 8 else {"attributes": value}))
    return found


def read(data):
    """Return facts, open and ended phases by number, and how many ended by path; `data` is a bytearray."""
    for pair in range(SEGMENT + 16, SEGMENT + 16 + 16 * _word(data, SEGMENT), 16):
        struct.pack_into("<Q", data, _word(data, pair), _word(data, pair + 8))
    paths, counts, phases = _read_paths(data), {}, {}
    for row in (at for start in _segments(data, 3) for at in range(start + 128, start + SEGMENT - 127, 128)):
        if _word(data, row) >> 32 & 255 == 1 and _word(data, row + 8):
            counts[paths[_word(data, row) % 2**32]] = _word(data, row + 8)
    for number, (is_over, _, _, is_folded, slot, said) in sorted(_read_slots(data).items()):
        path = paths[slot[3]] if slot[3] else tuple(said.get("path") or (*phases[slot[1]]["path"], said["name"]))
        phases[number] = {"path": path, "entered": slot[0], "ended": slot[9] if is_over else None, "lane": slot[4]}
        phases[number]["status"] = END[slot[11] >> 56] if is_over else "paused" if slot[7] & 4 else "active"
        phases[number] |= {"step": None if slot[2] == -(2**63) else slot[2]}
        phases[number] |= {"attributes": {**said.get("attributes", {}), **said.get("late", {})}}
        if is_over and not is_folded:
            counts[paths[slot[3]]] = counts.get(paths[slot[3]], 0) + 1
    return json.loads(data[1024 : 1024 + struct.unpack_from("<I", data, 88)[0]]), phases, counts
