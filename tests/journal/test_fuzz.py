"""Journals cut at every byte, and 100,000 times mutated: an answer or an error of ours, soon, and no sound phase lost.

python -m pytest tests/journal/test_fuzz.py                           what CI runs
python tests/journal/test_fuzz.py 2000000 7                            so many mutations, of that seed
python -m pip install atheris; python tests/journal/test_fuzz.py atheris   guided by coverage, until stopped
"""

from __future__ import annotations

import importlib.util
import random
import struct
import sys
import zlib
from pathlib import Path

if __name__ == "__main__" and sys.argv[1:2] == ["atheris"]:  # Before they are imported, or it would see no coverage.
    import atheris

    with atheris.instrument_imports(include=["stormphase.journal", "stormphase._clock", "stormphase._model"]):
        import stormphase.journal._glance  # noqa: F401 - brings all that reads

from stormphase.exceptions import JournalError
from stormphase.journal import _format
from stormphase.journal._glance import Glance
from stormphase.journal._image import JournalImage
from stormphase.journal._source import BytesSource
from stormphase.journal._story import read_source

if "journal_sample" not in sys.modules:  # run as a script
    _spec = importlib.util.spec_from_file_location("journal_sample", Path(__file__).with_name("sample.py"))
    sys.modules["journal_sample"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["journal_sample"])

import journal_sample as sample
from journal_sample import SEGMENT

FILE = Path("x.journal")
MUTATIONS = 100_000
GLANCED_AT = 0.1  # of them
WORDS = (0, 1, 2, 0xFF, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**56, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def read(source, ended_limit=3):
    """Return the image of a journal, or None where the reader says that it cannot be read."""
    try:
        image = read_source(
            source if isinstance(source, BytesSource) else BytesSource(source), FILE, ended_limit=ended_limit
        )
    except JournalError:
        return None
    check(image)
    return image


def glance(source):
    """Look at a journal as `top` does; what comes is checked alike."""
    try:
        check(Glance(FILE)._look(source))
    except JournalError:
        return


def check(image):
    """See that whoever takes an image may rely on its types."""
    assert isinstance(image, JournalImage)
    for phase in (*image.open, *image.ended):
        assert 0 < phase.sequence < 2**56
        assert (phase.ended_ns is None) == (phase.status in ("active", "paused"))
        assert all(type(name) is str for name in phase.path)
    for totals in image.totals.values():
        assert totals.count > 0


def places(data):
    """Return the offsets of bytes at which something is said, where mutations tell more than in empty space."""
    return [
        near
        for offset in range(0, len(data), 8)
        if any(data[offset : offset + 8])
        for near in range(offset, offset + 8)
    ]


class Mutant(BytesSource):
    """A journal that can be changed and mended in place: copying it would take longer than reading it."""

    def __init__(self, data):
        super().__init__(bytearray(data))
        self._mend = []

    def read(self, offset, length):
        """Return the bytes."""
        return bytes(self._data[offset : offset + length])

    def put(self, at, data):
        """Change some bytes, as far as the journal goes."""
        data = data[: len(self._data) - at]
        self._mend.append((at, self._data[at : at + len(data)]))
        self._data[at : at + len(data)] = data

    def mend(self):
        """Undo all changes."""
        while self._mend:
            at, data = self._mend.pop()
            self._data[at : at + len(data)] = data

    def seal(self):
        """Have the checksums fit, as whoever forges a journal would."""
        for at, start, most in ((88, _format.FACTS_AT, _format.MAX_FACTS), (208, _format.END_NOTE_AT, 4_096)):
            length = min(struct.unpack("<I", self.read(at, 4))[0], most)
            checksum = zlib.crc32(self.read(start, length))
            self.put(at, struct.pack("<II", length, checksum))

    def mutate(self, random_, interesting):
        """Change a few bytes, words or regions."""
        for _ in range(random_.choice((1, 1, 1, 2, 5))):
            at = random_.choice(interesting) if random_.random() < 0.9 else random_.randrange(self.size())
            kind = random_.randrange(6)
            if kind == 0:
                self.put(at, bytes([self._data[at] ^ 1 << random_.randrange(8)]))
            elif kind == 1:
                self.put(at, random_.randbytes(1))
            elif kind == 2:
                self.put(at & ~7, struct.pack("<Q", random_.choice(WORDS)))
            elif kind == 3:
                self.put(at, random_.randbytes(random_.randrange(1, 64)))
            elif kind == 4:
                self.put(at, self.read(random_.choice(interesting), 72))
            else:
                (word,) = struct.unpack("<Q", self.read(at & ~7, 8))
                self.put(at & ~7, struct.pack("<Q", (word + random_.choice((-1, 1, 72, 1 << 32))) % 2**64))
        if random_.random() < 0.5:
            self.seal()


def fuzz(mutations, seed):
    """Read so many mutations; return how many could be read."""
    random_ = random.Random(seed)
    data = sample.tiny()
    interesting = places(data)
    mutant = Mutant(data)
    could_be_read = 0
    for _ in range(mutations):
        mutant.mutate(random_, interesting)
        could_be_read += read(mutant, random_.choice((0, 0, 1, 3))) is not None
        if random_.random() < GLANCED_AT:
            glance(mutant)
        mutant.mend()
    assert data == mutant.read(0, len(data))
    return could_be_read


def test_no_mutation_makes_the_reader_fail_otherwise_than_it_should():
    """Of 100,000 mutations each is read or refused by an error of ours; most are read."""
    assert fuzz(MUTATIONS, 20_250_101) > MUTATIONS // 2


def test_a_journal_cut_at_every_byte_is_read_as_far_as_it_goes():
    """From the facts on nothing that is left is lost; before that, an error says that too little is left."""
    data = bytes(sample.tiny())
    whole = read(data)
    facts_end = 1_024 + struct.unpack_from("<I", data, 88)[0]
    said = set()
    for length in range(len(data)):
        # What lies between is zeros: a cut in it tells no more than a cut at its ends.
        if length > 1 and data[length - 1] == data[length - 2] == 0 and length % SEGMENT > 1 and length % 64:
            continue
        image = read(data[:length])
        assert (image is None) == (length < facts_end), length
        if image is not None:
            assert whole.identity == image.identity
            assert image.damage
            told = {phase.sequence for phase in (*image.open, *image.ended)}
            assert said <= told | {phase.sequence for phase in whole.ended}
            said = told
    assert {phase.sequence for phase in whole.open} <= said


def test_a_flipped_byte_costs_only_what_it_hits():
    """Wherever a byte is flipped in one segment, the phases of the others are still told."""
    data = bytes(sample.tiny())
    whole = read(data)
    main = {phase.sequence for phase in whole.open if phase.lane == 1}
    others = {phase.sequence for phase in whole.open} - main
    assert main
    assert others
    for offset in places(data):
        image = read(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
        segment = offset // SEGMENT
        if segment > 3 and segment != sample.TINY_MAIN:
            told = {phase.sequence for phase in (*image.open, *image.ended)}
            assert main <= told, offset


def _with_atheris():
    mutant = Mutant(sample.tiny())

    def one_input(data):
        # Pairs of an offset and a byte, upon the sample: a fuzzer would take ages to find 100 kB by itself.
        for index in range(1, len(data) - 3, 4):
            mutant.put(int.from_bytes(data[index : index + 3], "little") % mutant.size(), data[index + 3 : index + 4])
        if data[:1] >= b"@":
            mutant.seal()
        read(mutant)
        if data[:1] >= b"\x80":
            glance(mutant)
        mutant.mend()

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["atheris"]:
        _with_atheris()
    else:
        fuzz(int(sys.argv[1]), int(sys.argv[2]))
