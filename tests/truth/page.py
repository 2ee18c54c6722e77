"""Writes docs/accuracy.md: what the planted jobs are and are not, and the figures of one run."""

from __future__ import annotations

import datetime as dt
import os
import platform
import textwrap
from collections import Counter
from pathlib import Path

import truth_kinds_issue
from truth_kinds import KINDS
from truth_outcomes import OUTCOMES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"

_ABOUT = """\
# How often postmortem is right

`stormphase postmortem` names the ranks that may be the reason, and a guess would be a lie. So it is judged: jobs are
planted whose culprit is known by construction, and what it says of each is compared with that.

Written by `{command}` on {date}, in {seconds:.0f} s. Machine: {machine}.

## What a planted job is

A generator makes it from a kind and a seed: 1 to 64 ranks on 1 to 8 hosts, whose wall clocks are some milliseconds
apart; a program with setup, steps (data loading, forward, backward, all-reduce, optimizer; or buckets, asynchronous
collectives, FSDP, tensor parallel groups, a pipeline), checkpoints, evaluation, barriers and a teardown; times that
scatter, and a first step that compiles; points marked with `sync=True` or not; sessions as `with` blocks, with
`finally`, with exceptions that are caught, or never stopped; peers that hear of a death at once, after a watchdog's
time or never; a launcher that ends the others sooner or later. Into that one event is planted, such as a rank that is
killed in its 11th backward.

Then it is lived: each rank is a real process with a real `PhaseTracker` and a real journal, which raises, exits, is
killed by a real signal, stopped by a real SIGSTOP, or stays. Its clock is not real, so that hours pass in
milliseconds, and ranks of other hosts only say that they are on one. `stormphase postmortem` is run on the folder, as
text and as JSON.

## What it is not

- No GPU, no network and no NCCL: what ranks hear of each other is what the generator lets them hear, with the texts
  that gloo, NCCL and sockets have.
- Jobs of programs that we wrote. A real program may have phases of which nobody here has thought.
- One event a job, but for the kinds that say otherwise. The kinds are not weighted by how often they happen: the sums
  say how the rules fare on kinds, and not how often you will see what.
- Hosts have clocks that are kept by NTP. A clock that is minutes off is another matter.
- A few kinds run in real time as well, without a fake clock: `tests/truth/test_real_time.py`.

## What is counted

- **right**: the culprits come first, and nobody else; of a tie exactly those who are tied; nobody where all is well;
  and where the journals do not tell, it says that it cannot be told. Where they only hint, both are right, to name
  the culprits and to say that it cannot be told.
- **innocent first**: somebody is named first who has nothing to do with it. This is the worst, a lie.
- **culprit not named**: something is wrong, and it is not said, or nobody is named and not said why.
- **honest but less**: it says that it cannot be told, or names a tie, where the journals show more.
- **guessed**: the one whom it names is a culprit, but nothing in the journals shows it, or of several that are tied
  it names some.
- **tellers differ**: exit code, text and JSON do not say the same, whatever the outcome.
"""

_AGAIN = """\
One job again, with its text: `python tests/truth/run.py --kind "unmarked stuck" --seed 17`. A part of them runs
with the tests: `tests/truth/test_truth.py`.
"""


def page_of(found, command, seconds):
    """Return the page for these outcomes."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}; CPython {platform.python_version()}"
    date = dt.datetime.now(tz=dt.UTC).date()  # noqa: TID251 - a date for people
    parts = [_ABOUT.format(command=command, date=date, seconds=seconds, machine=machine)]
    issue = truth_kinds_issue.KINDS
    parts += [
        "## Kinds that were reported\n",
        *_table([each for each in found if each.kind in issue]),
        "## Kinds beyond those\n",
        *_table([each for each in found if each.kind not in issue]),
        "## All\n",
        *_sums(found),
        _AGAIN,
    ]
    return "\n".join(parts)


def _table(found):
    names = (*OUTCOMES, "tellers differ")
    yield f"| kind | what is planted | jobs | {' | '.join(names)} |"
    yield f"| --- | --- |{' ---: |' * (len(names) + 1)}"
    for kind in KINDS:
        mine = [each for each in found if each.kind == kind]
        if mine:
            yield f"| {kind} | {_what(kind)} | {len(mine)} | {_cells(mine)} |"
    yield f"| all | | {len(found)} | {_cells(found)} |\n"


def _sums(found):
    shown = {
        "named": "the journals show the culprits",
        "tie": "the journals show a tie",
        "may": "the journals hint at the culprits",
        "untold": "the journals do not tell",
        "well": "all is well",
    }
    names = (*OUTCOMES, "tellers differ")
    yield f"| what is true | jobs | {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * (len(names) + 1)}"
    for key, text in shown.items():
        mine = [each for each in found if each.shown == key]
        yield f"| {text} | {len(mine)} | {_cells(mine)} |"
    yield f"| all | {len(found)} | {_cells(found)} |\n"


def _cells(found):
    counts = Counter(each.outcome for each in found)
    differ = sum(bool(each.complaints) for each in found)
    return " | ".join(str(counts[name]) for name in OUTCOMES) + f" | {differ}"


def _what(kind):
    return textwrap.shorten(KINDS[kind].__doc__.strip().partition("\n")[0], 200)
