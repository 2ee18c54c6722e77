"""Which processes a store has records of: where their journals lie, and which of them are dead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import Liveness, judge, own_process
from stormphase._owner_records import JOURNAL
from stormphase._record import RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._liveness import Verdict
    from stormphase._model import ProcessIdentity
    from stormphase._record import PhaseRecord

OWNERS: Final = frozenset({RecordKind.RANK, RecordKind.PROCESS})


@attrs.frozen
class Launch:
    """One rank of one attempt of a session, and the directory in which its journals lie."""

    directory: Path
    session_id: str
    attempt: int
    rank: int


def launches_of(records: Iterable[PhaseRecord]) -> set[Launch]:
    """Return the launches of processes whose own records are among these and say where their journals are."""
    found = set()
    for record in records:
        journal = record.attributes.get(JOURNAL) if record.kind in OWNERS else None
        if isinstance(journal, str) and record.rank is not None:
            found.add(Launch(Path(journal).parent, record.session_id, record.session_attempt, record.rank))
    return found


class Court:
    """Judges processes, all at one moment."""

    def __init__(self, now_wall_ns: int) -> None:
        """Look at who is asking, once."""
        self._now_wall_ns = now_wall_ns
        self._this = own_process()

    def proof(self, process: ProcessIdentity, alive_ns: int) -> Verdict | None:
        """Return the verdict on a process that was alive then and is proven dead; None on any other."""
        verdict = judge(process, heartbeat_wall_ns=alive_ns, now_wall_ns=self._now_wall_ns, this=self._this)
        return verdict if verdict.state is Liveness.DEAD else None
