"""A store in one SQLite file, which any number of ranks on one machine may share, and any SQL tool can read."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stormphase._attempts import UNKNOWN_LAUNCH, Begun, Launched, next_attempt, running_already
from stormphase._clock import SystemClock
from stormphase._copying import CopiesToItself
from stormphase._liveness import Liveness, judge, own_process
from stormphase._model import PhaseStatus
from stormphase._record import PhaseRecord, RecordKind
from stormphase._status import FAILURES, TABLE
from stormphase.exceptions import ConfigurationError, StoreError
from stormphase.stores import _sqlite_rows as rows
from stormphase.stores._journals import remove_spares, spare_launches
from stormphase.stores._launches import Launch, launches_of
from stormphase.stores._lost import end_the_dead
from stormphase.stores._query import RecordQuery, query_of
from stormphase.stores._sqlite_blame import blame_known, blame_lost
from stormphase.stores._sqlite_file import check, connect, file_id, make_file, prepare, trouble
from stormphase.stores._sqlite_fork import ForkGate
from stormphase.stores._sqlite_guard import LEAST_S_OF_WRITES, TimeLimit
from stormphase.stores._sqlite_query import output_of, select
from stormphase.stores._sqlite_schema import MIGRATIONS, SEQUENCE_BITS
from stormphase.stores._sqlite_writer import ON_BEGIN, ON_END, RowWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from stormphase._model import ProcessIdentity, RankIdentity
    from stormphase.typing import Clock

BUSY_TIMEOUT_S: Final = 5.0

_READ_ROWS: Final = 256

_SAME_PROCESS: Final = "host IS ? AND boot_id IS ? AND pid IS ? AND pid_started IS ? AND pid_namespace IS ?"

_BEGIN_TIMEOUT_S: Final = 0.5
_UNFINISHED: Final = ", ".join(f"'{status}'" for status, rule in TABLE.rules.items() if not rule.is_final)
# An owner's own record is the first of its rows; one that has only just begun has none yet.
_BEGUN_SQL: Final = f"""
    SELECT o.session_attempt, o.rank, r.kind,
        CASE WHEN r.status = 'succeeded' AND json_valid(r.attributes)
            THEN json_extract(r.attributes, '$."stormphase.world_size"') = ? END,
        CASE WHEN json_valid(r.attributes) THEN json_extract(r.attributes, '$."stormphase.launch"') END,
        r.status NOT IN ({_UNFINISHED}),
        o.last_seen_ns, o.host, o.boot_id, o.pid, o.pid_started, o.pid_namespace
    FROM stored_owner o LEFT JOIN stored_record r ON r.id = o.id << {SEQUENCE_BITS}
    WHERE o.session_id = ? AND typeof(o.session_attempt) = 'integer'
"""
_BEGIN_SQL: Final = (
    "INSERT INTO stored_owner (session_id, session_attempt, rank, last_seen_ns, host, boot_id, pid, pid_started,"
    " pid_namespace) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_Result = TypeVar("_Result")

_log = logging.getLogger("stormphase")


class SqliteStore(CopiesToItself):
    """Keeps records in a SQLite file: WAL, batches in one transaction each, and one writer at a time.

    Made without touching the file, which the first record or question opens; `PhaseTracker` opens it at its start, so
    that a file that cannot be used fails there. The file is created 0600. What `begin` or `end` has returned from
    survives the death of the process at any instant; the last transactions may be lost if the machine loses its power,
    and the file is sound all the same (`synchronous=NORMAL`). WAL needs a local file system: no NFS.

    Thread-safe. In a forked child it opens the file anew, and leaves the parent's connection alone.

    Args:
        path: the database file; made, with its version, if it is not there.
        busy_timeout_s: how long one write waits while another process holds the file, before it raises.
        clock: where the time of the last sign of life comes from; tests give their own.

    Raises:
        ConfigurationError: if the path is `:memory:` or the time is negative.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S, clock: Clock | None = None
    ) -> None:
        """Remember where the file is."""
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(
                "A SqliteStore needs a file.", setting="path", fix="Use MemoryStore() to keep records in memory."
            )
        if not busy_timeout_s >= 0:
            raise ConfigurationError(
                f"busy_timeout_s must not be negative, and is {busy_timeout_s!r:.40}.",
                setting="busy_timeout_s",
                fix=f"Leave it out for {BUSY_TIMEOUT_S}.",
            )
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", and the process may move
        # What workers that have no journal keep until it is stored; see `stores._lost`.
        self.journals = self.path.with_name(f"{self.path.name}-journals")
        self._busy_timeout_s = busy_timeout_s
        self._clock = SystemClock() if clock is None else clock
        self._inherited: list[sqlite3.Connection] = []
        self._launches: set[Launch] = set()
        self._has_warned_of_rows = False
        self._renew()

    def _renew(self) -> None:
        self._gate = ForkGate()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[tuple[int, int], int] | None = None
        self._writer: RowWriter | None = None
        self._limit: TimeLimit | None = None

    # What a store does

    def open(self) -> None:
        """Open the file, making or migrating it if need be; what else opens it does so by itself.

        Raises:
            StoreError: if it cannot be used; the message says why and what to do.
        """
        self._ask(self._connected)

    def begin(self, records: Sequence[PhaseRecord], /) -> None:
        """Write what has begun, in one transaction; what is known already stays as it is.

        Raises:
            StoreError: if it cannot be written; then none of it is, and the same call may be made again.
        """
        self._write(records, ON_BEGIN)

    def end(self, records: Sequence[PhaseRecord], /) -> None:
        """Finish records, each with its output, in one transaction; the first end of a record counts.

        Raises:
            StoreError: if it cannot be written; then none of it is, and the same call may be made again.
        """
        self._write(records, ON_END)

    def query(
        self,
        wanted: RecordQuery | None = None,
        /,
        *,
        on_unreadable: Callable[[rows.UnreadableRows], object] | None = None,
        **filters: Any,
    ) -> Iterator[PhaseRecord]:
        """Return the records that are wanted, in the order in which they were entered; memory stays flat.

        What is written meanwhile is not among them. Close the iterator, or use it up, to release the file.

        Args:
            wanted: which; by default all.
            on_unreadable: told at the end of rows that are no records, if there were any; by default that is logged
                once.
            filters: the attributes of a `RecordQuery`, instead of one.

        Raises:
            StoreError: if the file cannot be read; also while the records are taken.
        """
        return self._records(query_of(wanted, filters), on_unreadable or self._warn_of_rows)

    def close(self) -> None:
        """Close the file; a later call opens it again. Never raises."""
        self._own()
        with self._gate.writing:
            connection, self._connection = self._connection, None
            self._writer = None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    def __del__(self) -> None:
        """Close the file, unless it is the connection of the process that this one was forked from."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._gate.pid == os.getpid():
            with contextlib.suppress(Exception):
                connection.close()

    # What this one can tell besides

    def paths(self) -> list[tuple[str, ...]]:
        """Return every path that a record has."""
        found = []
        for (names,) in self._read("SELECT names FROM stored_path WHERE depth > 0"):
            with contextlib.suppress(rows.WrongRowError):
                found.append(rows.names_of(names))
        return found

    def attribute_keys(self) -> list[str]:
        """Return every key that a phase's attributes have, in the order of their first sight."""
        found = self._read("SELECT key FROM stored_attribute ORDER BY number")
        return [key for (key,) in found if type(key) is str]

    def last_seen_ns(self, process: ProcessIdentity) -> int | None:
        """Return when `process` last wrote here, nanoseconds since the Unix epoch; None if never."""
        sql = f"SELECT max(last_seen_ns) FROM stored_owner WHERE {_SAME_PROCESS}"
        place = _place(process)
        found = [seen_ns for (seen_ns,) in self._read(sql, place) if type(seen_ns) is int]
        return found[0] if found else None

    def next_attempt(self, identity: RankIdentity, launched: Launched = UNKNOWN_LAUNCH) -> int:
        """Return which attempt of its session a rank begins, after those that are here; at least its own.

        Raises:
            StoreError: if the file cannot be read.
        """
        try:
            return next_attempt(identity, [each for each, _, _ in self._begun(identity, self._read)], launched)
        except rows.WrongRowError as error:
            raise trouble(self.path, error) from error

    def begin_attempt(self, identity: RankIdentity, launched: Launched = UNKNOWN_LAUNCH) -> int:
        """Return the same, and have this process known as that rank, so that no other one begins as it meanwhile.

        Raises:
            ConfigurationError: if another process that lives is that rank of the session, or the attempt was given and
                is taken.
            StoreError: if the file cannot be read or written, or is held by others for longer than half a second.
        """
        return self._ask(lambda: self._begin_attempt(identity, launched))

    def _begin_attempt(self, identity: RankIdentity, launched: Launched) -> int:
        timeout_s = min(self._busy_timeout_s, _BEGIN_TIMEOUT_S)
        make_file(self.path, timeout_s)
        connection = connect(self.path, timeout_s)
        TimeLimit(connection, self.path)
        this = own_process()
        attempts: list[int] = []

        def begin() -> None:
            begun = self._begun(identity, lambda sql, values: connection.execute(sql, values).fetchall())
            for each, is_rank, process in begun:
                if is_rank and each.is_alive and each.rank == identity.rank and process is not None and process != this:
                    raise running_already(identity, f"process {process.pid} on {process.host}")
            attempts.append(next_attempt(identity, [each for each, _, _ in begun], launched))
            row = (rows.sound(identity.session_id), attempts[0], identity.rank, self._clock.wall_ns(), *_place(this))
            connection.execute(_BEGIN_SQL, row)

        try:
            prepare(connection, self.path)
            self._in_transaction(connection, begin)
        finally:
            connection.close()
        return attempts[0]

    def _begun(
        self, identity: RankIdentity, read: Callable[[str, tuple[Any, ...]], list[Any]]
    ) -> list[tuple[Begun, bool, ProcessIdentity | None]]:
        """Return who has begun attempts of a session: also whether it is a rank or about to be one, and the process."""
        found = []
        values = (identity.world_size, rows.sound(identity.session_id))
        for attempt, rank, kind, is_done, launch, has_ended, seen_ns, *place in read(_BEGUN_SQL, values):
            process = rows.process_of(place)
            begun = Begun(
                attempt=attempt,
                rank=rank,
                is_alive=not has_ended and self._lives(process, seen_ns),
                is_done=bool(is_done),
                is_child=kind != RecordKind.RANK.value,
                launch=launch if isinstance(launch, str) else None,
            )
            found.append((begun, kind in (None, RecordKind.RANK.value), process))
        return found

    def _lives(self, process: ProcessIdentity | None, seen_ns: Any) -> bool:
        if process is None:
            return False
        last_seen_ns = seen_ns if type(seen_ns) is int else None
        now_ns = self._clock.wall_ns()
        verdict = judge(process, heartbeat_wall_ns=last_seen_ns, now_wall_ns=now_ns, this=own_process())
        return verdict.state is Liveness.ALIVE

    def note_alive(self, process: ProcessIdentity) -> None:
        """Take note that `process` lives now, though it has nothing to write.

        Raises:
            StoreError: if the file cannot be written.
        """
        now_ns = self._clock.wall_ns()
        sql = f"UPDATE stored_owner SET last_seen_ns = ? WHERE {_SAME_PROCESS}"
        self._ask(lambda: self._connected().execute(sql, (now_ns, *_place(process))))

    def close_lost(self) -> list[PhaseRecord]:
        """Give every unfinished record of a process that is proven dead its end; return those that are LOST.

        How a phase ended is read from the journal of its process, if it had one; so is what died before it wrote
        anything here, if it belonged to a launch that this object was given records of. Failures of other processes
        that what was lost explains name it as their root cause from then on.

        Raises:
            StoreError: if the file cannot be read or written.
        """
        now_ns = self._clock.wall_ns()
        spare = self._spare_launches()
        also = (*self._launches, *spare)
        ended = end_the_dead(self, now_wall_ns=now_ns, last_seen_ns=self.last_seen_ns, also=also)
        bad = [record for record in ended if record.status in FAILURES]
        if bad:
            self._ask(lambda: self._in_transaction(self._connected(), lambda: blame_lost(self._connected(), bad)))
        if spare:
            remove_spares(spare, self, now_wall_ns=now_ns)
        return [record for record in bad if record.status is PhaseStatus.LOST]

    def _spare_launches(self) -> set[Launch]:
        """Return the launches whose workers have left journals that stand in for none."""
        if not os.path.isdir(self.journals):  # noqa: PTH112 - unlike Path.is_dir, it never raises
            return set()
        return spare_launches(self.journals)

    # Writing

    def _write(self, records: Sequence[PhaseRecord], on_conflict: str) -> None:
        if records:
            self._ask(lambda: self._insert(self._connected(), records, on_conflict))

    def _insert(self, connection: sqlite3.Connection, records: Sequence[PhaseRecord], on_conflict: str) -> None:
        writer, self._writer = self._writer or RowWriter(connection), None

        def write() -> None:
            writer.insert(records, on_conflict, self._clock.wall_ns())
            blame_known(connection, records)

        self._launches.update(launches_of(records))
        self._in_transaction(connection, write)
        self._writer = writer  # What it has learnt holds, now that it is committed.

    @staticmethod
    def _in_transaction(connection: sqlite3.Connection, write: Callable[[], object]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            write()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    # Reading

    def _warn_of_rows(self, unreadable: rows.UnreadableRows) -> None:
        if not self._has_warned_of_rows:
            self._has_warned_of_rows = True
            _log.warning("stormphase: %s", unreadable.error)

    def _records(
        self, asked: RecordQuery, on_unreadable: Callable[[rows.UnreadableRows], object]
    ) -> Iterator[PhaseRecord]:
        wrong = 0
        first: rows.WrongRowError | None = None
        with self._reading() as connection:
            if connection is None:
                return
            gate = self._gate.reading
            limit = TimeLimit(connection, self.path)
            with gate:
                cursor = select(connection, asked)
            while True:
                with gate:
                    limit.renew()
                    found = cursor.fetchmany(_READ_ROWS)
                    lines = output_of(connection, [row[0] for row in found])
                if not found:
                    break
                for row in found:
                    try:
                        record = rows.record_of_row(row, lines.get(row[0], ()))
                    except rows.WrongRowError as error:
                        wrong += 1
                        first = first or error
                        continue
                    if asked.matches(record):
                        yield record
        if first is not None:
            on_unreadable(rows.UnreadableRows.of(self.path, wrong, first))

    def _read(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._reading() as connection:
            if connection is None:
                return []
            with self._gate.reading:
                return connection.execute(sql, tuple(values)).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Give a connection of the caller's own, or None where there is nothing to read yet."""
        self._own()
        connection = None
        try:
            with self._gate.reading:
                is_new = True
                if self.path.exists():
                    connection = connect(self.path, self._busy_timeout_s)
                    TimeLimit(connection, self.path)
                    version = check(connection, self.path)
                    is_new = version == 0
                    if 0 < version < len(MIGRATIONS):
                        prepare(connection, self.path)
            yield None if is_new else connection
        except (sqlite3.Error, rows.WrongRowError) as error:
            raise trouble(self.path, error) from error
        finally:
            if connection is not None:
                with self._gate.reading:
                    connection.close()

    # The file

    def _ask(self, call: Callable[[], _Result]) -> _Result:
        """Return what `call` does, under the lock and with our own errors."""
        self._own()
        with self._gate.writing:
            try:
                return call()
            except StoreError:
                raise
            except (sqlite3.Error, OSError, OverflowError, rows.WrongRowError) as error:
                if not isinstance(error, sqlite3.OperationalError):
                    self.close()  # Damaged, or not ours: look at it anew the next time.
                raise trouble(self.path, error) from error

    def _own(self) -> None:
        """In a forked child, leave what is the parent's: closing its connection would drop the parent's file locks."""
        if self._gate.pid != os.getpid():
            if self._connection is not None:
                self._inherited.append(self._connection)
            self._renew()

    def _connected(self) -> sqlite3.Connection:
        """Return the writer's connection, made anew if the file has gone or become shorter since.

        SQLite does not look: it would go on in a file that nobody finds any more, or without the pages that were cut
        off, the first of which makes it a database. Only VACUUM shortens one rightly; to look again then does no harm.
        """
        if self._connection is not None:
            found = file_id(self.path)
            if found is None or self._file is None or found[0] != self._file[0] or found[1] < self._file[1]:
                self.close()
            else:
                self._file = found
                if self._limit is not None:
                    self._limit.renew()
        if self._connection is None:
            make_file(self.path, self._busy_timeout_s)
            connection = connect(self.path, self._busy_timeout_s)
            limit = TimeLimit(connection, self.path, LEAST_S_OF_WRITES)
            try:
                prepare(connection, self.path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._limit = limit
            self._file = file_id(self.path)
        return self._connection


def _place(process: ProcessIdentity) -> tuple[Any, ...]:
    return (process.host, process.boot_id, process.pid, process.started, process.pid_namespace)
