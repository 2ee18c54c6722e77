"""What every record store must do, as tests that any store can run; public as `stormphase.testing`."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import OutputLine, PhaseRecord, RecordKind
from stormphase.stores import RecordQuery

if TYPE_CHECKING:
    from stormphase.typing import RecordStore

_PROCESS: Final = ProcessIdentity(host="node-1", boot_id="b", pid=7, started=42, pid_namespace=4_026_531_836)
_numbers = itertools.count(1)


def example_record(**fields: Any) -> PhaseRecord:
    """Return the record of an open phase, unlike every other one, with `fields` in place of its own."""
    number = next(_numbers)
    return PhaseRecord(
        **{
            "session_id": "conformance",
            "rank": 0,
            "scope_id": f"{number:016x}",
            "path": ("train", "step"),
            "sequence": number,
            "status": PhaseStatus.ACTIVE,
            "entered_ns": 1_700_000_000_000_000_000 + number,
            "entered_monotonic_ns": number,
            "thread_id": 1,
            "thread_name": "MainThread",
            "attributes": {"epoch": 1},
            "process": _PROCESS,
            **fields,
        }
    )


def as_ended(record: PhaseRecord, **fields: Any) -> PhaseRecord:
    """Return an open record as it is once it has ended, 1 ms later, with `fields` in place of its own."""
    entered_ns = record.entered_monotonic_ns
    return attrs.evolve(
        record,
        **{
            "status": PhaseStatus.SUCCEEDED,
            "ended_ns": record.entered_ns + 1_000_000,
            "ended_monotonic_ns": None if entered_ns is None else entered_ns + 1_000_000,
            "self_ns": 1_000_000,
            "paused_ns": 0,
            **fields,
        },
    )


_ODD_ATTRIBUTES: Final[dict[str, Any]] = {
    "text": "line\nbreak, 'quote', \"quote\" and \N{SNOWMAN}",
    "none": None,
    "flag": True,
    "whole": -(1 << 63),
    "real": 0.1,
    "nested": {"list": [1, None, {"deep": []}]},
    'odd "key"\\': 1,
    "Epoch": 2,
}
_FAILED: Final = {
    "status": PhaseStatus.FAILED,
    "error_type": "ValueError",
    "error_message": "bad",
    "traceback": "Traceback ...\nValueError: bad\n",
    "root_cause_scope_id": "00000000000000ab",
    "root_cause_path": ("train", "step", "load"),
}


class RecordStoreConformance:
    """Tests of the `RecordStore` Protocol for a store of your own; run by pytest.

    Derive a class whose name begins with `Test`, and say how a new, empty store is made:

        class TestMyStore(RecordStoreConformance):
            def make_store(self):
                return MyStore()

    Every test makes one store and closes it. Override `reopen_store` if your store keeps its records beyond its
    process: it returns a second store on what the first one, which is closed, has kept.
    """

    def make_store(self) -> RecordStore:
        """Return a new, empty store."""
        raise NotImplementedError("Override make_store: return a new, empty store of yours.")

    def reopen_store(self, store: RecordStore) -> RecordStore:
        """Return a store with what `store`, which was closed, has kept; by default `store` itself."""
        return store

    def test_what_has_begun_is_there_unfinished(self) -> None:
        """An open record comes back as it was, so that a process that dies leaves a trace of it."""
        store, record = self.make_store(), example_record()
        store.begin([record])
        _check([record], store)

    def test_an_end_takes_the_place_of_the_open_record(self) -> None:
        """All that the end says is there, its output with it, and the open record is not there twice."""
        store, record = self.make_store(), example_record()
        output = (OutputLine(1, "stdout", "hello"), OutputLine(2, "stderr", ""))
        store.begin([record])
        store.end([as_ended(record, output=output, attributes={"epoch": 1, "loss": 0.5})])
        _check([as_ended(record, output=output, attributes={"epoch": 1, "loss": 0.5})], store)

    def test_an_end_may_come_without_a_beginning(self) -> None:
        """A phase that began and ended since the last call is told by its end alone."""
        store, record = self.make_store(), as_ended(example_record())
        store.end([record])
        _check([record], store)

    def test_doing_it_twice_is_doing_it_once(self) -> None:
        """A call that may have failed is made again, so it must not count twice."""
        store, record = self.make_store(), example_record()
        ended = as_ended(record, output=(OutputLine(1, "stdout", "hello"),))
        store.begin([record])
        store.begin([record])
        store.end([ended])
        store.end([ended])
        _check([ended], store)

    def test_the_first_end_counts(self) -> None:
        """Whoever comes later, with whatever end, changes nothing; nor does a beginning that comes late."""
        store, record = self.make_store(), example_record()
        first = as_ended(record, output=(OutputLine(1, "stdout", "first"),))
        lines = (OutputLine(1, "stdout", "second"), OutputLine(2, "stdout", "more"))
        store.end([first])
        store.end([as_ended(record, status=PhaseStatus.LOST, evidence="none", output=lines)])
        store.begin([record])
        _check([first], store)

    def test_a_beginning_that_is_repeated_changes_nothing(self) -> None:
        """What was known first of an open record stays."""
        store, record = self.make_store(), example_record()
        store.begin([record])
        store.begin([attrs.evolve(record, step=5)])
        _check([record], store)

    def test_nothing_may_be_handed_over(self) -> None:
        """Empty calls do nothing."""
        store = self.make_store()
        store.begin([])
        store.end([])
        _check([], store)

    def test_every_field_comes_back(self) -> None:
        """Failures, tasks, retries, steps, evidence, odd names and odd attributes: nothing is lost or changed."""
        store = self.make_store()
        odd = ("a / b", "c'd\"e", "\N{SNOWMAN}", "%s {} \\")
        records = [
            as_ended(example_record(path=("train", "step", "load")), **_FAILED),
            as_ended(example_record(path=odd, attributes=_ODD_ATTRIBUTES)),
            as_ended(example_record(), status=PhaseStatus.LOST, evidence="process 7 is gone from node-1"),
            as_ended(example_record(), status=PhaseStatus.LOST, evidence="process 8 is gone", output=None),
            as_ended(example_record(), status=PhaseStatus.ABANDONED, reason="the session stopped"),
            example_record(status=PhaseStatus.PAUSED, is_sync=True, step=17, task_name="Task-1"),
            example_record(attempt=2, retry_of_scope_id="00000000000000aa", parent_scope_id="00000000000000ab"),
            example_record(correlation_id="c", session_attempt=3, rank=5),
        ]
        store.begin([record for record in records if not record.is_ended])
        store.end([record for record in records if record.is_ended])
        _check(records, store)

    def test_absent_is_absent(self) -> None:
        """What is None comes back as None, and no attributes as none."""
        store = self.make_store()
        bare = PhaseRecord(
            session_id="s",
            rank=None,
            scope_id="0" * 16,
            path=(),
            sequence=0,
            status=PhaseStatus.ACTIVE,
            entered_ns=0,
            kind=RecordKind.SESSION,
        )
        store.begin([bare])
        _check([bare], store)

    def test_restarts_and_sessions_are_apart(self) -> None:
        """The same scope id in another session, or another attempt of it, is another record."""
        store, record = self.make_store(), as_ended(example_record())
        again = attrs.evolve(record, session_attempt=1)
        other = attrs.evolve(record, session_id="other")
        store.end([record, again, other])
        _check([record, again, other], store)

    def test_a_question_is_answered_as_it_reads(self) -> None:
        """Whatever is asked, the answer is those records that the question itself says match, in order of entering."""
        store = self.make_store()
        records = [
            example_record(kind=RecordKind.SESSION, rank=None, path=(), sequence=0, attributes={}),
            example_record(kind=RecordKind.RANK, path=(), sequence=0, attributes={}),
            as_ended(example_record(path=("train",), attributes={"epoch": 1, "name": "a"})),
            as_ended(example_record(path=("train", "step"), attributes={"epoch": 2}), **_FAILED),
            as_ended(example_record(path=("train", "step", "load"), attributes={"epoch": True}), **_FAILED),
            example_record(path=("evaluate",), attributes={"epoch": None}, rank=1),
            as_ended(example_record(path=("evaluate", "step"), session_id="other")),
            as_ended(example_record(path=("train",), session_attempt=1)),
        ]
        store.begin([record for record in records[::-1] if not record.is_ended])
        store.end([record for record in records[::-1] if record.is_ended])
        middle_ns = records[4].entered_ns
        for wanted in (
            RecordQuery(),
            RecordQuery(kind="phase"),
            RecordQuery(kind=["session", "rank"]),
            RecordQuery(status="failed"),
            RecordQuery(status=["active", "succeeded"]),
            RecordQuery(path="train/*"),
            RecordQuery(path="step"),
            RecordQuery(path="* / step"),
            RecordQuery(path=("train", "step")),
            RecordQuery(path="nothing like it"),
            RecordQuery(rank=1),
            RecordQuery(session_id="other"),
            RecordQuery(session_attempt=1),
            RecordQuery(since_ns=middle_ns),
            RecordQuery(until_ns=middle_ns),
            RecordQuery(scope_id=records[3].scope_id),
            RecordQuery(where={"epoch": 2}),
            RecordQuery(where={"epoch": "1"}),
            RecordQuery(where={"epoch": 1, "name": "a"}),
            RecordQuery(where={"epoch": None}),
            RecordQuery(status="failed", path="train/step", since_ns=0),
        ):
            _check(list(filter(wanted.matches, records)), store, wanted)

    def test_records_outlive_closing(self) -> None:
        """After `close` they can be asked for, and more may come."""
        store = self.make_store()
        records = [as_ended(example_record()), example_record()]
        store.end(records[:1])
        store.begin(records[1:])
        store.close()
        store.close()
        store = self.reopen_store(store)
        _check(records, store)
        records.append(as_ended(example_record()))
        store.end(records[2:])
        _check(records, store)

    def test_many_records_at_once(self) -> None:
        """A busy program hands over thousands in one call."""
        store = self.make_store()
        records = [example_record() for _ in range(1_500)]
        store.begin(records)
        ended = [as_ended(record) for record in records]
        store.end(ended)
        _check(ended, store)

    def test_questions_and_records_come_from_several_threads(self) -> None:
        """A program asks while the tracker writes; every answer is whole."""
        store = self.make_store()
        records = [example_record() for _ in range(64)]
        trouble: list[BaseException] = []

        def write() -> None:
            try:
                for record in records:
                    store.begin([record])
                    store.end([as_ended(record)])
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                trouble.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        seen = 0
        while writer.is_alive():
            found = list(store.query())
            _same(True, seen <= len(found), "the number of records never falls")  # noqa: FBT003
            seen = len(found)
        writer.join()
        _same([], trouble, "the errors of the writer")
        _check([as_ended(record) for record in records], store)


def _check(expected: list[PhaseRecord], store: RecordStore, wanted: RecordQuery | None = None) -> None:
    """Compare all that the store has, or what it answers, and close it."""
    found = list(store.query() if wanted is None else store.query(wanted))
    expected = sorted(expected, key=lambda record: (record.entered_ns, record.key))
    found_order = [record.entered_ns for record in found]
    _same(sorted(found_order), found_order, "the order of what was found")
    found.sort(key=lambda record: (record.entered_ns, record.key))
    what = "what the store has" if wanted is None else f"the answer to {wanted}"
    _same([record.to_dict() for record in expected], [record.to_dict() for record in found], what)
    _same(expected, found, what)
    store.close()


def _same(expected: object, found: object, what: str) -> None:
    if expected != found:
        message = f"{what}: expected {expected}, found {found}"
        raise AssertionError(message)
