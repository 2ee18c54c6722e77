"""`stormphase recover DIR`: sends what dead processes left open, or ended and never exported, to the OTel backend."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stormphase._clock import SystemClock
from stormphase._record import dumps_ascii
from stormphase.analysis._words import counted, path_text, shown
from stormphase.analysis._words import span as duration
from stormphase.cli._exit_codes import UNWELL, WELL, told
from stormphase.cli._journals import NoJournalsError
from stormphase.cli._output import BOLD, DIM, GREEN, RED, YELLOW, Page, seconds
from stormphase.cli._record_texts import RecordTexts
from stormphase.otel._otlp_http import Endpoint, OtlpSender, checked_header
from stormphase.otel._recovery import Outcome, Recovery, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import TextIO

    from stormphase._record import PhaseRecord

TIMEOUT_S: Final = 30.0
_MAX_SHOWN: Final = 8
_WORDS: Final = 300
_STYLES: Final = {
    Result.SENT: GREEN,
    Result.FAILED: RED,
    Result.LOCKED: RED,
    Result.WAITING: YELLOW,
    Result.UNPROVEN: YELLOW,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = subparsers.add_parser(
        "recover",
        help="send what dead processes left open to the OTel backend",
        description=(
            "Close what dead processes left open as LOST, at the last time they were known alive, and send those "
            "spans, and the ended ones that were never exported, with their own ids. What was confirmed is never "
            "sent again."
        ),
        epilog=told("recover"),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="what was given as `journal` or STORMPHASE_DIR")
    parser.add_argument(
        "--otlp",
        metavar="ENDPOINT",
        help="OTLP over HTTP, such as http://collector:4318 (default: OTEL_EXPORTER_OTLP_ENDPOINT)",
    )
    parser.add_argument(
        "--header", metavar="NAME=VALUE", action="append", default=[], help="beside OTEL_EXPORTER_OTLP_HEADERS"
    )
    parser.add_argument("--session", metavar="ID", help="only this session")
    parser.add_argument(
        "--assume-dead",
        metavar="HOST",
        action="append",
        default=[],
        help="take silent processes of HOST, which cannot be asked from here, for dead; may be given several times",
    )
    parser.add_argument(
        "--again", action="store_true", help="send also what was confirmed before, the same to the byte"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what there is to send, and change nothing")
    parser.add_argument("--json", action="store_true", help="all that is known, in JSON")
    parser.add_argument(
        "--timeout-s",
        metavar="S",
        type=seconds,
        default=TIMEOUT_S,
        help="for how long a request is tried again (default: %(default)g s)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Recover, say what became of each journal, and return the exit code.

    Raises:
        StormphaseError: if the directory cannot be read, or the endpoint cannot be used.
    """
    clock = SystemClock()
    endpoint = Endpoint.of(arguments.otlp, os.environ, [_header(text) for text in arguments.header])
    sender = None
    if endpoint is not None and not arguments.dry_run:
        sender = OtlpSender(endpoint, clock=clock, timeout_s=arguments.timeout_s, stopping=threading.Event())
    recovery = Recovery(sender, clock=clock, assume_dead=arguments.assume_dead, again=arguments.again)
    outcomes = list(recovery.run(arguments.directory, session_id=arguments.session))
    if not outcomes:
        wanted = "" if arguments.session is None else f" of session {arguments.session!a}"
        raise NoJournalsError(
            f"No journal{wanted} in {str(arguments.directory)!a}. Give the directory that was given as `journal`, or "
            "as STORMPHASE_DIR."
        )
    if arguments.json:
        write_json(sys.stdout, outcomes, endpoint, is_dry_run=arguments.dry_run)
    else:
        page = Page(sys.stdout, os.environ)
        write_text(page, outcomes, endpoint, is_dry_run=arguments.dry_run)
        page.show()
    if arguments.dry_run:
        outcomes = [outcome for outcome in outcomes if outcome.result is not Result.WAITING]
    return WELL if all(outcome.is_finished for outcome in outcomes) else UNWELL


def write_text(page: Page, outcomes: Iterable[Outcome], endpoint: Endpoint | None, *, is_dry_run: bool) -> None:
    """Write what became of each journal that is not simply in order, and a last line on all of them."""
    counts = dict.fromkeys(Result, 0)
    spans = dict.fromkeys(Result, 0)
    for outcome in outcomes:
        counts[outcome.result] += 1
        spans[outcome.result] += outcome.spans
        if outcome.result is not Result.NOTHING or outcome.damage or outcome.cleared_unsent or outcome.unplaced:
            _write_outcome(page, outcome)
    if counts[Result.SENT] and endpoint is not None:
        sent = f"{counted(spans[Result.SENT], 'span')} of {_processes(counts[Result.SENT])} sent to {endpoint.shown}"
        page.wrapped(sent, style=BOLD)
    if counts[Result.WAITING]:
        waiting = f"{counted(spans[Result.WAITING], 'span')} of {_processes(counts[Result.WAITING])} to send"
        if not is_dry_run:
            waiting += ", and no endpoint was given: use --otlp http://collector:4318, or OTEL_EXPORTER_OTLP_ENDPOINT"
        page.wrapped(waiting, style=BOLD)
    if counts[Result.UNPROVEN]:
        silent = f"nothing proves that {_processes(counts[Result.UNPROVEN])} died: run this on their hosts, or use"
        page.wrapped(f"{silent} --assume-dead HOST if you know", style=YELLOW)
    if not any(
        counts[result] for result in (Result.SENT, Result.WAITING, Result.UNPROVEN, Result.FAILED, Result.LOCKED)
    ):
        page.wrapped("nothing left to send", style=BOLD)


def _write_outcome(page: Page, outcome: Outcome) -> None:
    identity, process = outcome.identity, outcome.process
    if identity is None or process is None:
        who = shown(outcome.file.name, _WORDS)
    else:
        attempt = f", attempt {identity.attempt}" if identity.attempt else ""
        session = shown(identity.session_id, _WORDS)
        who = f"session {session}{attempt}, rank {identity.rank}, process {process.pid} on {shown(process.host)}"
    page.wrapped(f"{who}: {_said(outcome)}", indent="  ", style=_STYLES.get(outcome.result, ""))
    if outcome.evidence is not None:
        page.wrapped(shown(outcome.evidence, _WORDS), first="  ", indent="  ", style=DIM)
    for record in outcome.lost[:_MAX_SHOWN]:
        # The path last: a long one is cut where the line ends.
        page.line(f"  LOST after {_lost_words(record)}")
    if len(outcome.lost) > _MAX_SHOWN:
        page.line(f"  and {len(outcome.lost) - _MAX_SHOWN:,} more (--json has all)", style=DIM)
    for note in _notes(outcome):
        page.wrapped(note, first="  ", indent="  ", style=YELLOW)


def _said(outcome: Outcome) -> str:
    problem = "" if outcome.problem is None else f": {shown(outcome.problem, _WORDS)}"
    return {
        Result.SENT: f"{counted(outcome.spans, 'span')} sent{problem}",
        Result.ALREADY_SENT: f"{counted(outcome.spans, 'span')} sent before",
        Result.NOTHING: "nothing to send",
        Result.WAITING: f"{counted(outcome.spans, 'span')} to send",
        Result.ALIVE: "it lives, and is left alone",
        Result.UNPROVEN: "it may be alive, and is left alone",
        Result.UNTRACED: "not sent, as it had no OpenTelemetry SDK when it started",
        Result.LOCKED: f"not sent{problem}",
        Result.FAILED: f"not sent{problem}",
    }[outcome.result]


def _lost_words(record: PhaseRecord) -> str:
    step = "" if record.step is None else f", step {record.step}"
    return f"{duration(record.duration_ns or 0)}{step}: {path_text(record.path)}"


def _notes(outcome: Outcome) -> list[str]:
    notes = []
    if outcome.unsampled:
        notes.append(f"{counted(outcome.unsampled, 'span')} not sent, as they were not sampled")
    if outcome.unplaced:
        notes.append(
            f"{counted(outcome.unplaced, 'phase')} not sent, as nothing says any more in which trace they were"
        )
    if outcome.cleared_unsent:
        notes.append(f"{counted(outcome.cleared_unsent, 'ended phase')} lost, as the journal had no room to keep them")
    notes += [f"damaged: {shown(each, _WORDS)}" for each in outcome.damage[:_MAX_SHOWN]]
    return notes


def _processes(count: int) -> str:
    return f"{count:,} process" + ("" if count == 1 else "es")


def write_json(stream: TextIO, outcomes: Iterable[Outcome], endpoint: Endpoint | None, *, is_dry_run: bool) -> None:
    """Write one object, its keys sorted, one journal a line; ASCII, so that no terminal takes a name for a command."""
    outcomes = list(outcomes)
    facts: dict[str, Any] = {
        "dry_run": is_dry_run,
        "endpoint": None if endpoint is None else endpoint.shown,
        "is_complete": all(outcome.is_finished for outcome in outcomes),
        "journals": [],
        "sent_spans": sum(outcome.spans for outcome in outcomes if outcome.result is Result.SENT),
    }
    before, after = json.dumps(facts, sort_keys=True, separators=(",\n", ": ")).split("[]")
    stream.write(f"{before}[")
    texts = RecordTexts(sort_keys=True)
    for index, outcome in enumerate(outcomes):
        stream.write(f"{',' * bool(index)}\n  ")
        _write_journal(stream, outcome, texts)
    stream.write(f"\n]{after}\n")


def _write_journal(stream: TextIO, outcome: Outcome, texts: RecordTexts) -> None:
    """Write one journal's object, its LOST records one at a time: no text in it can have the quotes of a key."""
    before, key, after = dumps_ascii(_to_dict(outcome), sort_keys=True).partition('"lost": [')
    stream.write(f"{before}{key}")
    stream.writelines(f"{', ' * bool(index)}{texts.text(record)}" for index, record in enumerate(outcome.lost))
    stream.write(after)


def _to_dict(outcome: Outcome) -> dict[str, Any]:
    """Return what is known of one journal, all but the records."""
    identity, process = outcome.identity, outcome.process
    return {
        "attempt": None if identity is None else identity.attempt,
        "cleared_unsent": outcome.cleared_unsent,
        "damage": list(outcome.damage),
        "evidence": outcome.evidence,
        "file": str(outcome.file),
        "host": None if process is None else process.host,
        "lost": [],
        "pid": None if process is None else process.pid,
        "problem": outcome.problem,
        "rank": None if identity is None else identity.rank,
        "result": outcome.result.value,
        "session_id": None if identity is None else identity.session_id,
        "spans": outcome.spans,
        "unplaced": outcome.unplaced,
        "unsampled": outcome.unsampled,
        "unsent_phases": outcome.unsent_phases,
    }


def _header(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return checked_header(name.strip(), value.strip(), "--header")
