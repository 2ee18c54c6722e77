"""What a process says is beside its journal at once, line by line, without secrets, and in each forked child's own."""

# ruff: noqa: T201 - prints are what it is about

from __future__ import annotations

import logging
import os
import signal
import sys

import pytest

from stormphase import LoggingSink
from stormphase.journal._said import SUFFIX, read_said
from stormphase.records import read_records


@pytest.fixture
def said(tmp_path):
    """Return a function that gives what stands beside the journals, as (stream, text) by process."""

    def read():
        files = sorted(tmp_path.rglob(f"*{SUFFIX}"))
        return [[(line.stream, line.text) for line in read_said(file.with_suffix(""))] for file in files]

    return read


def test_every_line_is_there_at_once(make_tracker, tmp_path, said):
    """Printed in pieces or at once, logged, without secrets; of an open phase it is in its record."""
    with make_tracker(journal=tmp_path, capture=True) as tracker:
        print("outside")
        with tracker.enter_phase("train"):
            print("two", "pieces")
            sys.stderr.write("first\nsecond\nunfinished")
            print("password=hunter2\x1b[31m")
            logging.getLogger("data").warning("logged\nin two lines")
            expected = [
                ("stdout", "two pieces"),
                ("stderr", "first"),
                ("stderr", "second"),
                ("stdout", "password=[redacted]"),
                ("log", "WARNING data: logged"),
                ("log", "in two lines"),
            ]
            assert [[("stdout", "outside"), *expected]] == said()
            (train,) = read_records(tmp_path, path="train")
            assert expected == [(line.stream, line.text) for line in train.output]
            sys.stderr.write(" no more\n")
            assert ("stderr", "unfinished no more") == said()[0][-1]


@pytest.mark.parametrize("options", [{"capture": True}, {"journal": "here"}], ids=["no journal", "no capture"])
def test_without_journal_or_capture_there_is_no_file(make_tracker, tmp_path, said, options):
    """Who asks for one of the two pays for one."""
    options = {key: tmp_path if value == "here" else value for key, value in options.items()}
    with make_tracker(**options) as tracker, tracker.enter_phase("train"):
        print("hello")
    assert [] == said()


def test_a_killed_childs_last_words_are_its_own(make_tracker, tmp_path, said):
    """The parent's file has the parent's lines, the child's the child's, and its LOST phase says them."""
    with make_tracker(journal=tmp_path, capture=True) as tracker, tracker.enter_phase("train"):
        print("parent")
        child = os.fork()
        if child == 0:
            tracker.enter("fit")
            print("child", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("parent again")
        (fit,) = read_records(tmp_path, path="fit", status="lost")
    assert ["child"] == [line.text for line in fit.output]
    assert [[("stdout", "child")], [("stdout", "parent"), ("stdout", "parent again")]] == sorted(said())


def test_where_it_cannot_be_kept_printing_goes_on(make_tracker, tmp_path, caplog, capsys):
    """It is told once, and the terminal shows what it showed."""
    with make_tracker(journal=tmp_path, capture=True) as tracker:
        (directory,) = [path for path in tmp_path.iterdir() if path.is_dir()]
        directory.rename(tmp_path / "gone")
        with tracker.enter_phase("train"):
            print("one")
            print("two")
    assert "one\ntwo\n" == capsys.readouterr().out
    assert 1 == sum("what is said last is not kept" in record.getMessage() for record in caplog.records)


def test_what_sinks_say_is_not_what_the_program_said(make_tracker, tmp_path, said, caplog):
    """A sink that logs each phase would drown the last words; it is neither kept beside the journal nor elsewhere."""
    caplog.set_level("DEBUG")
    with make_tracker(journal=tmp_path, capture=True, sinks=[LoggingSink()]) as tracker:
        print("before")
        with tracker.enter_phase("train"):
            pass
        assert tracker.flush()
        assert "train" in caplog.text
        assert [[("stdout", "before")]] == said()
        assert ["before"] == [line.text for line in tracker.capture.output_of(None).lines]


def test_a_private_key_is_not_there(make_tracker, tmp_path, said):
    """Its lines look like any others, and go; what is said after it stays, also where its end never comes."""
    with make_tracker(journal=tmp_path, capture=True):
        print("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\nafter")
        print("-----BEGIN PRIVATE KEY-----")
        for number in range(300):
            print(f"line {number}")
        texts = [text for _, text in said()[0]]
    assert "line 299" == texts[-1]
    assert not [text for text in texts if "MIIE" in text]


@pytest.mark.parametrize("bar", ["", "\r"], ids=["line", "progress bar"])
def test_a_line_without_end_is_bounded(make_tracker, tmp_path, said, bar):
    """Of what is written in a million pieces the begin is kept, of a bar what it shows, and no secret is cut in two."""
    with make_tracker(journal=tmp_path, capture=True):
        sys.stdout.write("api_key=" + "s" * 8_180)
        for number in range(2_000):
            sys.stdout.write(f"{bar}done {number:04}")
        print()
        ((stream, text),) = said()[0]
    assert "stdout" == stream
    assert text.startswith("done 1999" if bar else "api_key=[redacted]")
    assert "sss" not in text
