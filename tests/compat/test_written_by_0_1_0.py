"""What 0.1.0 wrote is read today, field by field: two journals and two databases, one of each of a killed process.

`made_by_0_1_0.json` is what 0.1.0 itself reads there; `make.py` wrote both files, and says how.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from stormphase import cli
from stormphase.journal import read_directory
from stormphase.records import PhaseRecord, read_records
from stormphase.stores import SqliteStore

HERE = Path(__file__).resolve().parent
EXPECTED = json.loads((HERE / "made_by_0_1_0.json").read_text())
SOURCES = ("clean.db", "killed.db", "journals")


@pytest.fixture
def made(tmp_path):
    """Return a folder with the files of 0.1.0, as its processes left them."""
    with tarfile.open(HERE / "made_by_0_1_0.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def by_key(records):
    """Return records as plain values, by what tells them apart; in which order they come is no matter of 0.1.0's."""
    return {(each["session_id"], each["kind"], each["scope_id"]): each for each in records}


def without_launcher(old):
    """Return what 0.1.0 reads, but for a session's launcher: each rank has its own, and a store never gave it to both."""
    if old["kind"] == "session":
        old = {**old, "attributes": {key: old["attributes"][key] for key in old["attributes"] if "launcher" not in key}}
    return old


def as_old(record, old):
    """Return a record of today without what it tells beyond 0.1.0: attributes of owners, and what nobody knows."""
    if old["kind"] != "phase":
        record["attributes"] = {key: record["attributes"].get(key) for key in old["attributes"]}
    if record["output"] is None and old["output"] == []:
        record["output"] = []
    return record


@pytest.mark.parametrize("source", SOURCES)
def test_records_are_those_that_0_1_0_reads(made, source):
    """Every phase has each of its fields, those of its session and rank included."""
    expected = by_key(map(without_launcher, EXPECTED[source]))
    found = by_key(record.to_dict() for record in read_records(made / source))

    assert expected.keys() == found.keys()
    assert expected == {key: as_old(found[key], old) for key, old in expected.items()}


def test_totals_of_journals_are_those_that_0_1_0_reads(made):
    """Counts and sums per path are the same to the nanosecond, and nothing counts as damaged."""
    found = [
        {
            "session_id": image.identity.session_id,
            "damage": list(image.damage),
            "totals": {
                " / ".join(path): [each.count, each.total_ns, each.self_ns, each.failed]
                for path, each in image.totals.items()
            },
        }
        for image in read_directory(made / "journals")
    ]

    assert EXPECTED["images"] == sorted(found, key=lambda image: image["session_id"])


@pytest.mark.parametrize("source", SOURCES)
def test_its_records_are_read_from_json(source):
    """A record that 0.1.0 wrote as JSON is one of today's, which says the same."""
    read = [PhaseRecord.from_dict(fields) for fields in EXPECTED[source]]

    assert EXPECTED[source] == [record.to_dict() for record in read]


@pytest.mark.parametrize("source", ["clean.db", "killed.db"])
def test_a_database_goes_on(made, source):
    """A session of today is kept beside those of 0.1.0, none of which it touches."""
    before = by_key(record.to_dict() for record in read_records(made / source))
    (old,) = read_records(made / source, kind="rank")
    store = SqliteStore(made / source)
    new = PhaseRecord.from_dict({**old.to_dict(), "session_id": "today", "scope_id": "00000000000000aa"})
    store.begin([new])
    store.close()

    found = by_key(record.to_dict() for record in read_records(made / source))
    assert before | by_key([new.to_dict()]) == found


def test_postmortem_reads_its_journals(made, capsys):
    """What the killed rank had open is named, with its step and its last words."""
    assert cli.main(["postmortem", str(made / "journals"), "--session", "killed"]) in (0, 1)

    assert "train / backward (step 2)" in capsys.readouterr().out
