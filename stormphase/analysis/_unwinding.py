"""The phases that the end of a process has unwound, from its journal: where an exception or a signal has ended it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase._model import PhaseStatus

if TYPE_CHECKING:
    from stormphase.journal._image import JournalImage, JournalPhase

# An exception that ends a process passes through its phases at once; the session's own end comes right behind it.
UNWOUND_NS: Final = 2_000_000_000
_UNWOUND: Final = frozenset({PhaseStatus.FAILED, PhaseStatus.CANCELLED, PhaseStatus.ABANDONED})
_GENERATOR_EXIT: Final = "GeneratorExit"


def left_by_end(image: JournalImage) -> tuple[JournalPhase, ...]:
    """Return the phases that the end of the process has unwound, outermost first; empty if nothing shows them.

    Where the journal says in which phase the exception arose that ended it, those are that phase and what it hangs
    under. Else they are the last ones of the main thread's lane, each a child of the one that ended after it, and none
    ended well; generators that were suspended meanwhile, and are closed last of all, are left out.
    """
    note = image.end_note
    cause = None if note is None else note.root_cause_scope_id
    by_id = {phase.scope_id: phase for phase in image.ended}
    if cause is None:
        return _last_of_main_thread(image, by_id)
    if cause in by_id:
        return _down_to(by_id[cause], by_id)
    # It came from another process; or from outside of all phases, or else to where no block took it: then what failed
    # before has nothing to do with it, but what was abandoned was open.
    found = _last_of_main_thread(image, by_id)
    has_passed = any(phase.error is not None and phase.error.root_cause_scope_id == cause for phase in image.ended)
    return found if has_passed or (found and found[-1].status is PhaseStatus.ABANDONED) else ()


def _down_to(phase: JournalPhase, by_id: dict[str, JournalPhase]) -> tuple[JournalPhase, ...]:
    found: dict[str, JournalPhase] = {}
    above: JournalPhase | None = phase
    while above is not None and above.scope_id not in found:  # A circle is what only a damaged file has.
        found[above.scope_id] = above
        above = by_id.get(above.parent_scope_id or "")
    return tuple(reversed(found.values()))


def _last_of_main_thread(image: JournalImage, by_id: dict[str, JournalPhase]) -> tuple[JournalPhase, ...]:
    note = image.end_note
    ended_ns = 0 if note is None else note.ended_ns
    ended_by = None if note is None else note.error_type
    first_ns = _first_abandoned_ns(image, ended_ns - UNWOUND_NS)
    found: list[JournalPhase] = []
    for phase in sorted(image.ended, key=lambda each: (each.ended_ns or 0, -len(each.path)), reverse=True):
        if not phase.is_main_thread or (found and phase.lane != found[-1].lane):
            continue
        if _was_suspended(phase, by_id.get(phase.parent_scope_id or ""), ended_by, first_ns):
            continue
        is_next = not found or (phase.path[:-1] == found[-1].path and phase.entered_ns >= found[-1].entered_ns)
        if phase.status not in _UNWOUND or not is_next:
            break
        found.append(phase)
    return tuple(found) if found and ended_ns - (found[0].ended_ns or 0) <= UNWOUND_NS else ()


def _first_abandoned_ns(image: JournalImage, since_ns: int) -> int:
    """Return when the first of the main thread's outermost phases was abandoned that were so at the end."""
    return min(
        (
            phase.ended_ns or 0
            for phase in image.ended
            if phase.status is PhaseStatus.ABANDONED
            and phase.is_main_thread
            and phase.parent_scope_id is None
            and (phase.ended_ns or 0) >= since_ns
        ),
        default=0,
    )


def _was_suspended(phase: JournalPhase, around: JournalPhase | None, ended_by: str | None, first_ns: int) -> bool:
    """Whether a phase is that of a generator, or another paused one, which the end found suspended and then closed."""
    if phase.error is not None and phase.error.type == _GENERATOR_EXIT:
        return ended_by != _GENERATOR_EXIT
    if phase.status is not PhaseStatus.ABANDONED:
        return False
    # What is on a lane ends before what is around it, and all that is on lanes before what is paused.
    ended_ns = phase.ended_ns or 0
    return phase.paused_ns > 0 and (first_ns if around is None else around.ended_ns or 0) < ended_ns
