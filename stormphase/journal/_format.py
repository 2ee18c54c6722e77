"""The journal's layout in numbers, as docs/journal-format.md has it: all that the writer and the reader share."""

from __future__ import annotations

import struct
from typing import Final

from stormphase._enter import NO_STEP, SLOT_BYTES
from stormphase._model import PhaseStatus

__all__ = ["NO_STEP"]

MAGIC: Final = b"\x89SPJ\r\n\x1a\n"
VERSION: Final = 1
SUFFIX: Final = ".journal"

SEGMENT: Final = 16_384
SLOT: Final = SLOT_BYTES

# Segment 0. Everything up to IS_COMPLETE is written once; what follows changes while the process lives.
HEADER: Final = struct.Struct("<8sIIIIQqqQQQ16sII")
IS_COMPLETE: Final = 96
LOST_NS: Final = 104
HEARTBEATS: Final = (128, 152)
HEARTBEAT: Final = struct.Struct("<qqQ")
STEP: Final = 176
UNWRITTEN: Final = 184
FOLDS: Final = 192
ALLOCATED: Final = 200
END_NOTE: Final = 208
STOP_SIGNAL: Final = 216
STOP_ASKED_NS: Final = 224
CLEARED_UNSENT: Final = 232
OWNERS_UNSENT: Final = 240
FACTS_AT: Final = 1_024
MAX_FACTS: Final = 11_264
END_NOTE_AT: Final = 12_288
MAX_END_NOTE: Final = 4_096

# Segments 1 and 2.
REDO_AT: Final = SEGMENT
REDO_PAIRS_AT: Final = SEGMENT + 16
MAX_REDO_PAIRS: Final = (2 * SEGMENT - 16) // 16
SCRATCH_AT: Final = 3 * SEGMENT
FIRST_SEGMENT: Final = 4

# Segments from 4 on: offsets of the words in their headers.
SERIAL: Final = 0
KIND_AND_STATE: Final = 8
SEGMENT_HEADER: Final = struct.Struct("<QQQIIQQQQ")
DISCARDED: Final = 32
BLOBS_FROM: Final = 48
TEXT_LENGTH: Final = 56
FIRST_SLOT: Final = 64

PHASES: Final = 1
STRINGS: Final = 2
TOTALS: Final = 3
STACKS: Final = 4

UNUSED: Final = 0
IN_USE: Final = 1
FOLDED: Final = 2
CLEARING: Final = 3

MAIN_THREAD: Final = 1
MOVED: Final = 2

# A slot: what enter writes, then what exit writes. In both the last field says that the others stand.
ENTER: Final = struct.Struct("<qQqIIIIQ")
EXIT: Final = struct.Struct("<qqQ")
EXIT_AT: Final = ENTER.size
SEQUENCE_AT: Final = 40
WORD_AT: Final = 64
HANDED_OVER_AT: Final = 39
WHOLE_SLOT: Final = struct.Struct("<qQqIIHHIQqqQ")

IS_SYNC: Final = 1
IS_ROOT: Final = 2
IS_PAUSED: Final = 4
IS_ENVELOPE: Final = 8
IS_HANDED_OVER: Final = 1 << 24

STATUS_SHIFT: Final = 56
SEQUENCE_MASK: Final = (1 << STATUS_SHIFT) - 1
STATUS_CODES: Final = {
    PhaseStatus.SUCCEEDED: 0,
    PhaseStatus.FAILED: 1,
    PhaseStatus.CANCELLED: 2,
    PhaseStatus.ABANDONED: 3,
}
STATUSES: Final = {code: status for status, code in STATUS_CODES.items()}
SUPERSEDED: Final = 254
VOID: Final = 255

MAX_BLOB: Final = 8_192  # at enter
MAX_ENVELOPE: Final = 12_288  # later, when there is more to say

# Strings.
MAX_STRINGS: Final = 8_192
MAX_PATHS: Final = 4_096
STRING: Final = struct.Struct("<II")
THREAD_NAME: Final = 0xFFFFFFFF

# Totals.
FIRST_ROW: Final = 128
ROW: Final = 128
ROW_WORDS: Final = ROW // 8
PATH_ROW: Final = 1
BUCKET_ROW: Final = 2
BUCKETS_A_ROW: Final = ROW_WORDS - 1
(COUNT, TOTAL_NS, SELF_NS, FAILED, MIN_NS, MAX_NS, PAUSED_NS, CANCELLED, ABANDONED, UNBUCKETED) = range(1, 11)
