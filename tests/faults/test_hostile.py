"""Names, attributes and messages that would command a terminal, a parser or a screen, from a real process that died."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import unicodedata

import pytest

EVIL = {
    "ansi": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "newlines": "one\ntwo\r\nthree\x0b\x0c\x85\u2028\u2029four",
    "bidi": "\u202eevil\u2066live\u2069\u200f",
    "markup": "[bold red]x[/bold red][link=file:///etc/motd]y[/link]",
    "combining": "e" + "\u0301" * 5_000,  # 10 kB
    "surrogate": "\ud800half",
    "nul": "a\0b",
    "json": '"}], "ranks": [{"',
}
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "R", "AL"}

PROGRAM = """
import json, os, signal, sys, threading
from stormphase import PhaseTracker

evil = json.loads(sys.argv[2])
tracker = PhaseTracker(
    evil["markup"], session_id="s", rank=0, world_size=1, bridge=None, summary=False, journal=sys.argv[1]
).start()
for name in evil.values():
    with tracker.enter_phase(name, {name[:200]: name}):
        pass
    try:
        with tracker.enter_phase("fails"):
            raise ValueError(name)
    except ValueError:
        pass
for name in evil.values():
    tracker.enter_phase(name, {name[:200]: name, "list": [name[:200]]}, sync=True)
entered = threading.Event()

def work():
    tracker.enter_phase("load")
    entered.set()
    threading.Event().wait(50)

threading.Thread(target=work, name="".join(name[:30] for name in evil.values()), daemon=True).start()
entered.wait(10)
ENDING
"""
ENDINGS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exception": "raise ValueError(''.join(evil.values()))",
}


@pytest.fixture(params=list(ENDINGS))
def runs(request, tmp_path, run_python):
    """Return where a hostile process left its journal."""
    directory = tmp_path / "runs"
    program = PROGRAM.replace("ENDING", ENDINGS[request.param])
    done = run_python(program, str(directory), json.dumps(EVIL), check=False)
    assert done.returncode == (-signal.SIGKILL if request.param == "killed" else 1)
    return directory


def output_of(command, runs, *options):
    """Return what a command of the installed package prints, as bytes."""
    program = [sys.executable, "-m", "stormphase.cli", command, runs, *options]
    done = subprocess.run(program, capture_output=True, timeout=100, check=False, cwd=runs)
    assert done.returncode in (0, 1), done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [("postmortem", ()), ("postmortem", ("--rank", "0")), ("top", ("--once",)), ("recover", ()), ("records", ())],
)
def test_nothing_that_a_terminal_obeys_is_printed(runs, command, options):
    """No control or direction but the ends of lines, no heap of marks, markup as it is, and no endless line."""
    text = output_of(command, runs, *options).decode("utf-8")
    assert set() == {char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl")}
    assert set() == {char for char in text if unicodedata.bidirectional(char) in BIDI}
    assert "\u0301" * 20 not in text
    assert max(map(len, text.splitlines())) < 1_000
    assert len(text) < 30_000


@pytest.mark.parametrize(("command", "options"), [("postmortem", ("--json",)), ("records", ("--format", "json"))])
def test_json_says_what_was_said_in_ascii(runs, command, options):
    """Whoever parses it has the very attributes, and no terminal that shows it takes them for commands."""
    data = output_of(command, runs, *options)
    assert data.isascii()
    assert set() == {byte for byte in data if byte < 32} - {10}
    found = json.loads(data)
    records = found["ranks"][0]["open"] if command == "postmortem" else found
    attributes = {}
    for record in records:
        attributes |= record["attributes"]
    if records:  # An exception leaves nothing open.
        # A journal has room for 8 kB of them, and UTF-8 none for half a character.
        said = [text for name, text in EVIL.items() if name not in ("surrogate", "combining")]
        assert said == [attributes[text[:200]] for text in said]
