"""Runs random programs in processes of their own, compares what was told of each, and makes small what disagrees."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import story_agreement as agreement
import story_programs as programs
import story_tellers as tellers
from story_stories import Run

_HERE = Path(__file__).parent
_VARIABLES = ("STORMPHASE_", "OTEL_", "TRACE")
SHRINKS = 200
STACKS_CHARS = 10_000


class Runner:
    """Two zygotes, one for each half of the hot path, and an OTLP endpoint; a context manager.

    Args:
        directory: where the runs leave what they leave.
        keeps: whether that stays there.
    """

    def __init__(self, directory, *, keeps=False):
        """Start nothing yet."""
        self._directory = Path(directory)
        self._keeps = keeps
        self._zygotes = {}
        self._number = 0

    def __enter__(self):
        """Open the endpoint."""
        self._endpoint = tellers.Endpoint()
        return self

    def __exit__(self, *_):
        """End the zygotes and the endpoint."""
        for zygote in self._zygotes.values():
            zygote.stdin.close()
            zygote.stdout.close()
            zygote.wait()
        self._endpoint.close()

    def run(self, program):
        """Run a program, and return what disagrees, and the run."""
        self._number += 1
        directory = self._directory / f"run-{self._number}"
        directory.mkdir(parents=True)
        (directory / "program.json").write_text(json.dumps(program))
        zygote = self._zygote(pure=program["pure"])
        zygote.stdin.write(f"{directory}\n")
        zygote.stdin.flush()
        answer = json.loads(zygote.stdout.readline())
        found_alive = []
        if "holds" in answer:
            found_alive = agreement.compare(Run(directory, program, is_alive=True))
            zygote.stdin.write("\n")
            zygote.stdin.flush()
            answer = json.loads(zygote.stdout.readline())
        run = Run(directory, program, self._endpoint, answer["status"])
        if answer["problem"]:
            stacks = (directory / "stderr").read_text(errors="replace")[-STACKS_CHARS:]
            run.say(answer["problem"], None, "process", status=answer["status"], stacks=stacks)
        run.seconds = answer["seconds"]
        found = found_alive + agreement.compare(run)
        if not self._keeps:
            shutil.rmtree(directory)
        return found, run

    def _zygote(self, *, pure):
        if pure not in self._zygotes:
            environ = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
            environ["STORMPHASE_PURE"] = "1" if pure else "0"
            self._zygotes[pure] = subprocess.Popen(
                [sys.executable, _HERE / "zygote.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environ,
            )
        return self._zygotes[pure]


def signatures(found):
    """Return what kinds of disagreements there are."""
    return {(each.check, each.field) for each in found}


def shrunk(runner, program, signature, *, tries=SHRINKS):
    """Return a program with as few operations as possible that still disagrees in the same way."""
    progress = True
    while progress and tries > 0:
        progress = False
        for number in range(len(list(programs.operations(program["body"])))):
            smaller = without(program, number)
            tries -= 1
            if smaller is not None and signature in signatures(runner.run(smaller)[0]):
                program, progress = smaller, True
                break
            if tries <= 0:
                break
    return program


def without(program, number):
    """Return the program without its operation of that number and all inside it; None if that leaves nothing."""
    smaller = copy.deepcopy(program)
    wanted = list(programs.operations(smaller["body"]))[number]
    for body in _all_bodies(smaller["body"]):
        for index, op in enumerate(body):
            if op is wanted:
                del body[index]
                return {**smaller, "body": programs.numbered(smaller["body"])} if smaller["body"] else None
    return None


def _all_bodies(body):
    yield body
    for op in body:
        for part in ("in", "between", "there"):
            if part in op:
                yield from _all_bodies(op[part])
        for each in op.get("bodies", ()):
            yield from _all_bodies(each)


def drawn(body, indent=0):
    """Return a tree of operations as lines of text."""
    lines = []
    for op in body:
        said = {key: value for key, value in op.items() if key not in ("op", "n", "in", "between", "there", "bodies")}
        lines.append(f"{'  ' * indent}{op['n']} {op['op']} {said}")
        for part in ("in", "between", "there"):
            lines += [f"{'  ' * indent}  ({part})"] * (part != "in" and bool(op.get(part)))
            lines += drawn(op.get(part, ()), indent + 1)
        for each in op.get("bodies", ()):
            lines += [f"{'  ' * indent}  (body)", *drawn(each, indent + 1)]
    return lines
