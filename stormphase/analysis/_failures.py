"""Why a process ended otherwise than well that had caught what ended its work, and then ended in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from stormphase._model import PhaseStatus
from stormphase.analysis._words import MAX_MESSAGE, shown

if TYPE_CHECKING:
    from stormphase.journal._image import JournalImage, JournalPhase

# Who has caught what ended its work reports it, cleans up, and ends its session.
FAILED_NS: Final = 60_000_000_000
_FAILED: Final = frozenset({PhaseStatus.FAILED, PhaseStatus.CANCELLED})


@attrs.frozen(kw_only=True)
class Failure:
    """What ended the outermost phase of a process that ended in order all the same.

    Attributes:
        path: the outermost phase.
        status: how that ended, FAILED or CANCELLED.
        at_ns: when it arose, nanoseconds since the Unix epoch on its host's wall clock.
        error_type: the exception's type.
        error_message: its text.
    """

    path: tuple[str, ...]
    status: PhaseStatus
    at_ns: int
    error_type: str
    error_message: str


def failure_of(image: JournalImage) -> Failure | None:
    """Return why the outermost phase that failed or was cancelled last was so, and None if none was.

    Only what ended so within `FAILED_NS` of the session's end, and was not gone through once more in order since.
    """
    note = image.end_note
    outermost: dict[tuple[str, ...], JournalPhase] = {}
    for phase in image.ended:
        if phase.is_main_thread and phase.parent_scope_id is None:
            outermost[phase.path] = phase
    bad = [phase for phase in outermost.values() if phase.status in _FAILED]
    if note is None or not bad:
        return None
    last = max(bad, key=lambda phase: phase.ended_ns or 0)
    error = last.error
    if error is None or note.ended_ns - (last.ended_ns or 0) > FAILED_NS:
        return None
    arose = next((phase for phase in image.ended if phase.scope_id == error.root_cause_scope_id), last)
    return Failure(
        path=last.path,
        status=last.status,
        at_ns=image.anchor.to_wall_ns(min(arose.ended_ns or 0, last.ended_ns or 0)),
        error_type=shown(error.type),
        error_message=shown((arose.error or error).message, MAX_MESSAGE),
    )
