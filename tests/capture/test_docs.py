"""docs/capture.md tells the truth: its code runs, and shows what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_the_examples_run(repository: Path, run_python) -> None:
    """Each block of Python runs in a process of its own; the block of text behind one is what it prints."""
    text = (repository / "docs" / "capture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert ["python", "text", "python"] == [language for language, _ in blocks]
    assert blocks[1][1] == run_python(blocks[0][1], env={"STORMPHASE_SUMMARY": ""}).stdout
    assert "" == run_python(blocks[2][1]).stdout
