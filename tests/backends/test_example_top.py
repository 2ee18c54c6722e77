"""The screen of `stormphase top` on the example that crashes, in a real terminal, and the picture of it in README.

The picture is made anew with `STORMPHASE_PICTURE=docs/top.png python -m pytest -m backend -k live_screen`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.text import Text

from .browser import open_page
from .example import EXAMPLES, LIMIT_S, example_environ

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.backend

COLUMNS, ROWS = 100, 22
HOME = b"\x1b[H"  # a frame begins here
CURSOR_BACK = b"\x1b[?25h"
RED = "color(1)"


@pytest.fixture
def stuck_job(tmp_path: Path) -> Iterator[Path]:
    """The folder in which a job of the example is stuck in `runs`."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "crash.py"), "runs", f"--keep={10 * LIMIT_S}"],
        cwd=tmp_path,
        env=example_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("the job stays for ") for line in process.stdout)
        yield tmp_path
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
        assert 0 == process.returncode
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def frames_of(folder: Path, count: int) -> list[bytes]:
    """Run `top` in a terminal until it has drawn so many frames, press `q`, and return them."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "stormphase.cli", "top", "runs"],
        cwd=folder,
        env=example_environ({"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    drawn = bytearray()
    try:
        while drawn.count(HOME) < count + 2:  # one to clear the screen, and one that has only begun
            drawn += os.read(screen, 1 << 16)
        os.write(screen, b"q")
        while CURSOR_BACK not in drawn:
            drawn += os.read(screen, 1 << 16)
        process.wait(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    assert 0 == process.returncode
    return [bytes(frame) for frame in drawn.split(CURSOR_BACK)[0].split(HOME)[2:]]


def svg_of(frame: bytes) -> str:
    """Draw what a terminal shows."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in frame.decode().split("\r\n"):
        console.print(Text.from_ansi(line), no_wrap=True)
    svg = console.export_svg(title="stormphase top runs")
    # No font from the network: the page's own monospace one.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")


def test_the_live_screen_names_who_died_and_who_hangs(stuck_job: Path) -> None:
    """In a terminal each rank has its row, the dead and the hung one first and red, with what speaks against them."""
    frame = frames_of(stuck_job, count=4)[-1]

    lines = [Text.from_ansi(line) for line in frame.decode().split("\r\n")]
    assert (ROWS, {COLUMNS}) == (len(lines), {line.cell_len for line in lines})
    rows = [line for line in lines if line.plain[:1].isdigit() and " train / step / " in line.plain]
    assert ["3", "5"] == [row.plain.split()[0] for row in rows[:2]]
    assert ["backward", "data_loading", *["all_reduce"] * 6] == [row.plain.split()[-1] for row in rows]
    assert [{RED}, {RED}] == [{str(part.style) for part in row.spans} for row in rows[:2]]
    assert ["rank 3", "rank 5"] == [
        line.plain[:6] for line in lines if line.plain.startswith("rank ") and ":" in line.plain
    ]

    page_file = stuck_job / "top.svg"
    svg = svg_of(frame)
    page_file.write_text(svg, encoding="utf-8")
    width, height = (round(float(size)) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    with open_page(page_file.as_uri(), width=width, height=height) as page:
        shown = page.evaluate("document.documentElement.textContent").replace("\N{NO-BREAK SPACE}", " ")
        picture = page.picture()
    path = Path(os.environ.get("STORMPHASE_PICTURE") or stuck_job / "top.png")
    path.write_bytes(picture)
    assert "train / step / data_loading" in shown
