"""stormphase with its journal: alone, with three attributes, and together with the bridge."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from measure import Subject
from ours import NestedWithAttributes
from ours_bridged import Bridged, BridgedStep
from sdk import Providers
from workload import OUTER, PHASE

from stormphase import PhaseTracker
from stormphase._drain import flush_all

QUIET_TIMEOUT_S = 30.0


def fold_all(tracker: PhaseTracker) -> None:
    """Wait until the journal's worker has folded all full segments and is quiet."""
    session = tracker._session
    assert session is not None
    journal = session.journal._open
    assert journal is not None
    flush_all([journal._worker], QUIET_TIMEOUT_S, is_last=False)


class Journaled(Subject):
    """Phases inside an open phase, each of them written to the journal, with no bridge."""

    name = "stormphase, nested, with journal"

    def open(self) -> None:
        """Start the tracker, with a journal in a directory of its own."""
        self._directory = tempfile.mkdtemp()
        self._tracker = PhaseTracker("benchmark", bridge=None, journal=self._directory)
        self._tracker.start()

    def prepare(self) -> None:
        """Enter the phase around the batch."""
        self._outer = self._tracker.enter_phase(OUTER)

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE):
                pass

    def settle(self) -> None:
        """Leave the phase around the batch, and let the journal fold."""
        self._outer.close()
        fold_all(self._tracker)

    def close(self) -> None:
        """Stop the tracker, see that nothing was left out of the journal, and remove it."""
        counts: dict[str, Any] = self._tracker.stats()["journal"]
        self._tracker.stop()
        shutil.rmtree(self._directory)
        assert not counts["unwritten"], counts


class JournaledWithAttributes(Journaled):
    """The same with three attributes."""

    name = "stormphase, nested, with journal and 3 attributes"
    batch = NestedWithAttributes.batch


class JournaledAtRoot(Journaled):
    """Phases at the root: what grows is measured by these."""

    name = "stormphase, at the root, with journal"

    def prepare(self) -> None:
        """Enter nothing."""

    def settle(self) -> None:
        """Let the journal fold."""
        fold_all(self._tracker)


class BridgedAndJournaled(Bridged):
    """Phases inside an open phase, each of them a span and written to the journal."""

    name = "stormphase with bridge and journal"

    def open(self) -> None:
        """Make providers, and start a tracker that is bridged to them and keeps a journal."""
        self._directory = tempfile.mkdtemp()
        self._providers = Providers()
        self._tracker = PhaseTracker("benchmark", bridge=self._make_bridge(), journal=self._directory)
        self._tracker.start()

    def settle(self) -> None:
        """Deliver all, and let the journal fold."""
        super().settle()
        fold_all(self._tracker)

    def close(self) -> None:
        """Stop the tracker and remove the journal."""
        super().close()
        shutil.rmtree(self._directory)


class BridgedAndJournaledStep(BridgedAndJournaled):
    """A short step that lets go of the GIL, with a phase around it and one around each of its pieces."""

    name = "step of 8 pieces, 9 phases with bridge and journal"
    delivered_per_operation = BridgedStep.delivered_per_operation
    batch = BridgedStep.batch
