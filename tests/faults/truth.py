"""What a process has confirmed of its phases, and whether a journal tells the truth about them."""

from __future__ import annotations

from stormphase._model import PhaseStatus

OPEN = (PhaseStatus.ACTIVE, PhaseStatus.PAUSED)


class Truth:
    """The phases that were confirmed, by sequence.

    Attributes:
        open: what is known of each phase that was entered, and whose exit has not begun.
        ended: of each that has ended.
        pending: the sequences of phases that are being ended, or nobody knows of.
        changing: of those that are being paused, resumed or handed over.
        entering: the paths of phases that may have been entered, and need not have been confirmed.
        unwritten: how many phases found no room.
    """

    def __init__(self):
        self.open = {}
        self.ended = {}
        self.pending = set()
        self.changing = set()
        self.entering = []
        self.unwritten = 0

    def check(self, image, where):
        """Compare with what a journal says; what it says wrong is in the error."""
        opened = {phase.sequence: phase for phase in image.open}
        ended = {phase.sequence: phase for phase in image.ended}
        assert len(image.open) == len(opened), f"{where}: a phase is open twice"
        assert len(image.ended) == len(ended), f"{where}: a phase has ended twice"
        assert set() == opened.keys() & ended.keys(), f"{where}: a phase is open and has ended"
        assert () == image.damage, where
        self._check_known(opened, ended, where)
        self._check_unknown({**opened, **ended}, where)
        self._check_counts(image, opened, where)

    def _check_known(self, opened, ended, where):
        for sequence, facts in self.open.items():
            if sequence in self.changing:
                assert sequence in opened, f"{where}: {facts['path']} is not open"
            if sequence not in self.pending | self.changing:
                assert sequence in opened, f"{where}: {facts['path']} is not open"
                assert facts == _facts(opened[sequence], facts), f"{where}: {facts['path']}"
            else:
                found = opened.get(sequence, ended.get(sequence))
                if found is not None:
                    kept = {name: value for name, value in facts.items() if name in ("path", "entered_ns", "step")}
                    assert kept == _facts(found, kept), f"{where}: {facts['path']}"
        for sequence, facts in self.ended.items():
            assert sequence not in opened, f"{where}: {facts['path']} has ended, and is open"
            if sequence in ended:
                assert facts == _facts(ended[sequence], facts), f"{where}: {facts['path']}"

    def _check_unknown(self, found, where):
        expected = list(self.entering)
        for sequence, phase in found.items():
            if sequence in self.open or sequence in self.ended:
                continue
            assert phase.path in expected, f"{where}: nobody entered {phase.path}"
            expected.remove(phase.path)

    def _check_counts(self, image, opened, where):
        total = sum(totals.count for totals in image.totals.values()) + image.unfolded
        may_have_ended = len(self.pending) + len(self.entering)
        assert len(self.ended) <= total <= len(self.ended) + may_have_ended, f"{where}: {total} have ended"
        assert self.unwritten <= image.unwritten <= self.unwritten + len(self.entering), where
        known = total + len(opened) + image.unwritten
        least = len(self.ended) + len(self.open) + self.unwritten - len(self.pending)
        assert least <= known <= least + len(self.pending) + len(self.entering), f"{where}: {known} are known"
        if not image.unfolded:
            self._check_totals(image.totals, where)

    def _check_totals(self, totals, where):
        counts = {}
        for facts in self.ended.values():
            counts[facts["path"]] = counts.get(facts["path"], 0) + 1
        for path, count in counts.items():
            assert path in totals, f"{where}: {path} has no totals"
            spare = totals[path].count - count
            assert 0 <= spare <= len(self.pending) + len(self.entering), f"{where}: {path} ended {totals[path].count}"


def _facts(phase, names):
    """Return what a journal says of a phase, of the facts that are to be compared."""
    return {name: getattr(phase, name) for name in names}
