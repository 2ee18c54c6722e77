"""README tells the truth: its commands exist, its code runs, what it shows is printed, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import pytest

from .backends.example import EPOCH, Shown, example_environ, run_example, shown_tree

if TYPE_CHECKING:
    from conftest import RunPython

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MISUSE_LINE = 41  # where README's error says that its code stands

# Each Python block of README by words of its own: what a reader's program has before it, what follows, what is shown.
PROGRAMS = {
    "enumerate(loader)": (
        "loader = [1, 2, 3]\nmodel = float",
        "",
        {("train",): Shown(1, 0), ("train", "step"): Shown(3, 0), ("train", "step", "forward"): Shown(3, 0)},
    ),
    "summary=True).start()": ("", "", {("train",): Shown(1, 0)}),
    'enter("all_reduce", sync=True)': ("", "", {("all_reduce",): Shown(1, 0)}),
    "async def evaluate": ("", 'assert 0.98 == asyncio.run(evaluate("test"))', {("evaluate",): Shown(1, 0)}),
    "tracker.retry(first_try)": (
        "disks = [0]\ndef save():\n    if disks.pop() == 0:\n        disks.append(1)\n        raise OSError",
        "assert [] == disks",
        {("checkpoint",): Shown(2, 1)},
    ),
    "target=contextvars": (
        'def load_data():\n    with stormphase.phase("load_data"):\n        pass',
        "worker.join()",
        {("load_data",): Shown(1, 0)},
    ),
    "phase.release()": ("", "phase.close()", {("moved",): Shown(1, 0)}),
    "configure(": ("", "", {}),
    "store=SqliteStore": ("", "", {}),
}
MISUSE = 'reduce = tracker.enter("all_reduce")'
OWN_TRACKER = ("enumerate(loader)", "summary=True).start()", "configure(", "store=SqliteStore")
IMPORTS = "import asyncio, contextvars, threading\nimport stormphase\n"


def blocks(language: str) -> list[str]:
    """Return README's blocks in one language, in order."""
    return [text for found, text in BLOCKS if found == language]


def test_the_first_two_commands_are_the_newcomers() -> None:
    """The two commands for a fresh machine are one line each, and stand first."""
    assert [
        "python -m pip install -e '.[examples]' && python examples/train_digits.py\n",
        "python -m pip install -e '.[test]' && python -m pytest\n",
    ] == blocks("sh")[:2]


def test_every_script_that_is_named_exists() -> None:
    """Each Python file of a command, in a block or in a sentence, is there, and so is each extra that is installed."""
    scripts = set(re.findall(r"python (\w\S*\.py)", README))
    examples = {"examples/train_digits.py", "examples/ranks.py", "examples/crash.py", "examples/failures.py"}
    assert {*examples, "tests/benchmarks/run.py"} == scripts
    assert [] == [script for script in scripts if not (ROOT / script).is_file()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = {extra for listed in re.findall(r"'\.\[([\w,]+)\]'", README) for extra in listed.split(",")}
    assert {"examples", "test", "otlp", "cli"} == extras
    assert [] == [extra for extra in extras if f"\n{extra} = [" not in project]
    assert '\nmarkers = [\n    "backend: ' in project


@pytest.mark.parametrize("line", [line for text in blocks("sh") for line in text.splitlines()])
def test_arguments_and_variables_of_a_command_are_real(line: str, repository: Path) -> None:
    """Options that README gives to an example or a command are its own, and the variables it sets are ones we know."""
    words = shlex.split(line)
    known = (repository / "docs" / "otel.md").read_text(encoding="utf-8")
    for variable in [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]:
        assert variable in known or variable == "OTEL_EXPORTER_OTLP_HEADERS"
    options = {word for word in words if word.startswith("--")}
    if options:
        sources = {"python": words[1], "stormphase": f"stormphase/cli/_{words[1]}.py"}
        assert options <= set(re.findall(r"--[a-z-]+", (repository / sources[words[0]]).read_text("utf-8")))


def test_every_link_leads_somewhere() -> None:
    """Every link and picture is a file of the repository."""
    targets = set(re.findall(r"\]\(([^)#]+)[^)]*\)", README))
    assert {
        "docs/mlflow.png",
        "docs/mlflow-lost.png",
        "docs/top.png",
        "docs/journal.md",
        "docs/otel.md",
        "tests/benchmarks/RESULTS.md",
    } <= targets
    assert [] == [target for target in targets if not (ROOT / target).is_file()]


def test_every_python_block_is_run_here() -> None:
    """Each Python block belongs to exactly one program below."""
    keys = [*PROGRAMS, MISUSE]
    assert [1] * len(keys) == [sum(key in text for key in keys) for text in blocks("python")]


@pytest.mark.parametrize("key", PROGRAMS)
def test_a_python_block_runs(key: str, run_python: RunPython) -> None:
    """The code runs as it stands, with stand-ins for the reader's own, and its phases are shown."""
    before, after, expected = PROGRAMS[key]
    (block,) = [text for text in blocks("python") if key in text]
    body = f"{block}\n{after}\n"
    if key == "phase.release()":
        body = f'phase = tracker.enter_phase("moved")\n{body}'
    if key not in OWN_TRACKER:
        body = f'with stormphase.PhaseTracker("readme", summary=True) as tracker:\n{indent(body, "    ")}'
    switches = dict.fromkeys(("OTEL_TRACES_EXPORTER", "OTEL_LOGS_EXPORTER", "OTEL_METRICS_EXPORTER"), "none")
    unset = dict.fromkeys(os.environ.keys() - example_environ().keys(), "")

    done = run_python(f"{IMPORTS}{before}\n{body}", env={**unset, **switches})

    assert expected == shown_tree(done.stdout)


def test_the_error_is_what_is_raised(tmp_path: Path) -> None:
    """The misuse that README shows raises the very message that it shows."""
    (block,) = [text for text in blocks("python") if MISUSE in text]
    head = f'{IMPORTS}tracker = stormphase.PhaseTracker("resnet", bridge=None).start()\n'
    program = tmp_path / "train.py"
    program.write_text(head + "\n" * (MISUSE_LINE - 1 - head.count("\n")) + block, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=100, check=False, env=example_environ()
    )

    (shown,) = [text for text in blocks("text") if "PhaseProtocolError" in text]
    assert done.stderr.splitlines()[-1] == " ".join(shown.split())


def test_the_tree_is_what_the_example_prints(tmp_path: Path) -> None:
    """README's output is the example's, line by line but for figures and ids, and all counts are the same."""
    shown = blocks("text")[0]
    printed = run_example("train_digits.py", cwd=tmp_path)

    assert shown_tree(printed) == shown_tree(shown)
    assert {12, 516} <= {row.count for row in shown_tree(shown).values()}
    assert Shown(13, 1) == shown_tree(shown)[(*EPOCH, "checkpoint")]
    assert sorted(map(without_figures, printed.splitlines())) == sorted(map(without_figures, shown.splitlines()))


def without_figures(line: str) -> str:
    """Return a line with ids, times and other numbers, which differ from run to run, all alike."""
    line = re.sub(r"\b[0-9a-f]{20,}…?", "ID", line)
    return " ".join(re.sub(r"\d+(\.\d+)?(ns|us|ms|s|%)?", "#", line).split())
