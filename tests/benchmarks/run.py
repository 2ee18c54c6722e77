"""Measures stormphase against the floor and its peers, and writes RESULTS.md beside this file.

    python tests/benchmarks/run.py                  # CPython 3.11 and 3.13, about five minutes
    python tests/benchmarks/run.py --python 3.12    # another one; may be given more than once
    python tests/benchmarks/run.py --only local --only bridge --output -
    python tests/benchmarks/run.py --render         # the last run again, after an edit of the reasons in budgets.py

It makes its own virtual environments in a cache folder, and installs there the checkout and the newest releases of its
peers. It needs nothing but the standard library itself. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environment import default_cache, load, machine, make_environment
from panels import PANELS
from report import COMMAND, Page, Run, render

if TYPE_CHECKING:
    from environment import Environment
    from panels import Panel

HERE = Path(__file__).resolve().parent
DEFAULT_PYTHONS = ("3.11", "3.13")
PANEL_TIMEOUT_S = 300


def run_panel(name: str, panel: Panel, environment: Environment, options: list[str]) -> dict[str, Any]:
    """Measure one panel in a process of its own, in an empty working directory: some peers leave files there.

    Raises:
        subprocess.CalledProcessError: if a subject fails, or what it delivered is not exact.
        subprocess.TimeoutExpired: if it hangs.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "found.json")
        subprocess.run(
            [environment.python, HERE / "worker.py", name, output, *options],
            check=True,
            cwd=folder,
            env=_environ(panel),
            stdout=subprocess.DEVNULL,  # some peers print what they record
            timeout=PANEL_TIMEOUT_S,
        )
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def run_all(environment: Environment, names: list[str], rounds: int | None) -> Run:
    """Measure panels one after the other; one that fails is told of, left out and does not end the run."""
    found = {}
    failed = []
    for name in names:
        panel = PANELS[name]
        options = [] if rounds is None else ["--rounds", str(rounds)]
        print(f"CPython {environment.version}: {name}", file=sys.stderr, flush=True)
        try:
            found[name] = run_panel(name, panel, environment, options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    return Run(python=environment.version, packages=environment.packages, found=found, failed=failed)


def _environ(panel: Panel) -> dict[str, str]:
    # The caller's own settings must not reach what is measured, nor .pyc files the checkout.
    foreign = ("OTEL_", "PYTHON", "STORMPHASE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **panel.environ}


def _command(arguments: argparse.Namespace) -> str:
    """Say how to get the same page; where things are kept on this machine does not matter for that."""
    words = [COMMAND]
    words += [f"--python {version}" for version in arguments.python or ()]
    words += [f"--only {name}" for name in arguments.only or ()]
    words += [f"--rounds {arguments.rounds}"] if arguments.rounds else []
    return " ".join(words)


def measure(arguments: argparse.Namespace) -> Page:
    """Measure all that the command line asks for."""
    names = [name for name in PANELS if not arguments.only or name in arguments.only]
    # All environments first: what an installation leaves to do to the disk must not fall into a measurement.
    environments = [make_environment(version, arguments.cache) for version in arguments.python or DEFAULT_PYTHONS]
    before = load()
    runs = [run_all(environment, names, arguments.rounds) for environment in environments]
    return Page(
        machine=machine(),
        load=f"load {before:.1f} before and {load():.1f} after, of which the benchmark itself is 1",
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        command=_command(arguments),
        runs=runs,
    )


def main() -> int:
    """Do what the command line says; returns 1 if a panel failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="X.Y", help="a version of CPython; default: 3.11 and 3.13")
    parser.add_argument("--only", action="append", choices=PANELS, metavar="PANEL", help=f"of {', '.join(PANELS)}")
    parser.add_argument("--rounds", type=int, help="samples of each subject, instead of each panel's own number")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the last run's page again")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the environments are kept")
    parser.add_argument("--output", default=HERE / "RESULTS.md", help="the page to write; - prints it")
    arguments = parser.parse_args()
    last = arguments.cache / "last.json"
    if arguments.render:
        page = Page.of_json(last.read_text())
    else:
        page = measure(arguments)
        last.write_text(page.to_json())
    if arguments.output == "-":
        print(render(page), end="")
    else:
        Path(arguments.output).write_text(render(page))
    return int(any(run.failed for run in page.runs))


if __name__ == "__main__":
    sys.exit(main())
