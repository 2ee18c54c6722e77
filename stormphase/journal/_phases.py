"""Makes phases of slots: names, parents and what stands in envelopes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stormphase._ids import scope_id_number, to_hex
from stormphase._model import PhaseError, PhaseStatus
from stormphase.journal import _format
from stormphase.journal._header import id_or_none, int_or_none, text_or_none
from stormphase.journal._image import JournalPhase
from stormphase.journal._names import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase.journal._damage import Damage
    from stormphase.journal._names import Names, PathBudget
    from stormphase.journal._slots import Slots

UNSEEN_END: Final = (
    "An interrupt kept its end from being written down; it was over by the time that stands here as its end."
)
_OPEN: Final = (PhaseStatus.ACTIVE, PhaseStatus.PAUSED)


class Phases:
    """Makes phases; each is made when it is asked for."""

    def __init__(
        self, all_slots: Sequence[Slots], names: Names, id_base: int, damage: Damage, budget: PathBudget
    ) -> None:
        """Make phases of what is in `all_slots`; `budget` is for paths that stand in no table."""
        self._all_slots = all_slots
        self._names = names
        self._id_base = id_base
        self._damage = damage
        self._budget = budget
        self._places: dict[int, tuple[Slots, int]] | None = None
        self._tasks: dict[int, str] | None = None
        self._paths: dict[int, tuple[str, ...]] = {}

    def find(self, sequence: int) -> tuple[Slots, int] | None:
        """Return where the phase of a number stands, or None."""
        if self._places is None:
            self._places = {
                slots.sequences[row]: (slots, row)
                for slots in self._all_slots
                for rows in (slots.ended, slots.open)
                for row in rows
            }
        return self._places.get(sequence)

    def make(self, slots: Slots, row: int, *, unseen_end_ns: int | None = None) -> JournalPhase:
        """Return the phase in a slot; `unseen_end_ns` for an open one that is known to be over."""
        (entered_ns, parent, step, number, lane, _, blob_bytes, flags, sequence, ended_ns, on_top_ns, word) = (
            slots.fields(row)
        )
        envelope = slots.envelope(row) if blob_bytes else {}
        attributes = _object(envelope.get("attributes"))
        late = _object(envelope.get("late"))
        _, _, thread_id, thread_name, thread_flags, *_ = _format.SEGMENT_HEADER.unpack_from(slots.segment.data)
        paused_since_ns = None
        status_text = text_or_none(envelope.get("status_text"))
        if unseen_end_ns is not None:
            status = PhaseStatus.ABANDONED
            status_text = UNSEEN_END
            ended_ns, on_top_ns = max(entered_ns, unseen_end_ns), 0
        elif word:
            status = _format.STATUSES[word >> _format.STATUS_SHIFT]
        elif flags & _format.IS_PAUSED:
            status = PhaseStatus.PAUSED
            paused_since_ns = int_or_none(envelope.get("paused_since_ns"))
        else:
            status = PhaseStatus.ACTIVE
        is_open = status in _OPEN
        if "thread_id" in envelope:
            thread = text_or_none(envelope.get("thread_name"))
            is_main = envelope.get("is_main") is True
        else:
            thread = self._names.thread(thread_name)
            is_main = bool(thread_flags & _format.MAIN_THREAD)
        return JournalPhase(
            sequence=sequence,
            scope_id=_root_id(envelope) or self._scope_id(sequence),
            parent_scope_id=id_or_none(envelope.get("parent")) or (self._scope_id(parent) if parent else None),
            path=self._path(number, sequence, parent, envelope),
            status=status,
            entered_ns=entered_ns,
            ended_ns=None if is_open else ended_ns,
            children_ns=0 if is_open else on_top_ns,
            paused_ns=int_or_none(envelope.get("paused_ns")) or 0,
            paused_since_ns=paused_since_ns,
            step=None if step == _format.NO_STEP else step,
            lane=lane,
            thread_id=int_or_none(envelope.get("thread_id")) or thread_id,
            thread_name=thread,
            is_main_thread=is_main,
            task_name=self._task(lane),
            is_lane_root=not parent or bool(flags & _format.IS_ROOT),
            attributes={**attributes, **late} if late else attributes,
            is_sync=bool(flags & _format.IS_SYNC),
            attempt=int_or_none(envelope.get("attempt")) or 0,
            retry_of=id_or_none(envelope.get("retry_of")),
            error=self._error(envelope.get("error"), sequence),
            status_text=status_text,
            trace=_object(envelope.get("trace")) or None,
            is_handed_over=bool(flags & _format.IS_HANDED_OVER),
            is_cut=envelope.get("cut") is True,
        )

    def _task(self, lane: int) -> str | None:
        """Return the name of a lane's task; it stands on the outermost of its phases only."""
        if self._tasks is None:
            self._tasks = {}
            for slots in self._all_slots:
                self._tasks.update(slots.tasks())
        return self._tasks.get(lane)

    def _scope_id(self, sequence: int) -> str:
        return to_hex(scope_id_number(self._id_base, sequence))

    def _path(self, number: int, sequence: int, parent: int, envelope: dict[str, Any]) -> tuple[str, ...]:
        """Return a phase's path; of one without a number, its own name comes after the nearest known path."""
        if number:
            return self._names.path(number)
        chain: list[tuple[int, str]] = []
        path: tuple[str, ...] | None = None
        while path is None:
            whole = envelope.get("path")
            if number:
                path = self._names.path(number)
            elif sequence in self._paths:
                path = self._paths[sequence]
            elif type(whole) is list and whole and all(type(name) is str for name in whole):
                path = tuple(whole)
            else:
                chain.append((sequence, text_or_none(envelope.get("name")) or UNREADABLE))
                place = self.find(parent) if parent < sequence else None
                if place is None:
                    path = (UNREADABLE,) if parent else ()
                else:
                    slots, row = place
                    _, parent, _, number, _, _, _, _, sequence, _, _, _ = slots.fields(row)
                    envelope = {} if number else slots.envelope(row)
        chars = sum(map(len, path))
        # Each is kept, also one that is lost, so that nobody goes this way again.
        for each, name in reversed(chain):
            if self._budget.is_spent:
                self._damage.note("a path is lost")
                path, chars = (UNREADABLE,), len(UNREADABLE)
            path = self._paths[each] = (*path, name)
            chars += len(name)
            self._budget.spend(len(path), chars)
        return path

    def _error(self, error: object, sequence: int) -> PhaseError | None:
        if error is None:
            return None
        if type(error) is not dict:
            self._damage.note("the error of a phase is damaged")
            return None
        root = id_or_none(error.get("root"))
        return PhaseError(
            type=text_or_none(error.get("type")) or UNREADABLE,
            message=text_or_none(error.get("message")) or "",
            traceback=text_or_none(error.get("traceback")),
            root_cause_scope_id=self._scope_id(sequence) if root is None else root,
        )


def _root_id(envelope: dict[str, Any]) -> str | None:
    """Return the id of a phase that is the root of a trace of its own, which all ranks derive; None for others."""
    trace = _object(envelope.get("trace"))
    return id_or_none(trace.get("root_id")) if trace.get("parent_id") is None else None


def _object(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}
