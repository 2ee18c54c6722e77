"""Compares the figures and looks that only one teller has with what follows from the phases that all know.

Those are the cells of the summary, what `postmortem` calls usual, names, codes and events of spans, and the spans of
session and rank.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict

from story_oracle import key_of
from story_tellers import FINAL, otlp_attributes

from stormphase._histogram import bucket_of, quantile_between
from stormphase._table import LETTERS, duration

_BESIDE = "beside, on other threads and tasks:"
_FAILURES = ("failed", "lost")


def _of_sketch(durations, fraction):
    """Return a quantile of durations, as everybody has to give it: from the one sketch, between the extremes."""
    return quantile_between(Counter(map(bucket_of, durations)), fraction, min(durations), max(durations))


def _active_ns(facts):
    return facts["ended_ns"] - facts["entered_ns"] - facts["paused_ns"]


# --- the summary ------------------------------------------------------------------------------------------------------


def summary_adds_up(run):
    """Each row of the summary has in its cells what follows from the ends that the sink was told."""
    if "wall time" not in run.stdout or run.program.get("sinks", "one") == "none":
        return
    text = run.stdout[run.stdout.rindex("stormphase: ") :]
    if "\u2026" in text.partition("without a count")[0]:
        return  # Long names are cut.
    told = defaultdict(list)
    for facts in run.sink.exits.values():
        if run.oracle.pid_of(key_of(facts)) in (None, run.oracle.main_pid):
            told[facts["path"]].append(facts)
    for path, rows in _rows(text).items():
        phases = told.get(path, [])
        is_whole = len(rows) == 1 and not any(key_of(each) in run.oracle.moved | run.oracle.unsure for each in phases)
        if is_whole and phases and rows[0].get("count") == str(len(phases)):
            expected = _cells(phases)
            wrong = {name: (cell, expected[name]) for name, cell in rows[0].items() if expected.get(name, cell) != cell}
            if wrong:
                run.say("summary", None, " / ".join(path), summary_and_sink=wrong)


def _rows(text):
    """Return the rows of a table by path: their cells, by column."""
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("phase ")), "phase")
    columns = [(name, header.index(f" {name}") + 1 + len(name)) for name in header.split()[1:]]
    found, above = defaultdict(list), []
    for line in lines[lines.index(header) + 1 :] if header in lines else ():
        if line == _BESIDE:
            above = []
        if line.startswith(("(", "wall time", "without", "fail", _BESIDE)) or not columns:
            continue
        cells, left = {}, columns[0][1] - len(columns[0][0])
        label = line[:left]
        for name, right in columns:
            cells[name] = line[left:right].strip()
            left = right
        level = (len(label) - len(label.lstrip())) // 2
        del above[level:]
        if label.strip():
            above.append(label.strip().split(" / "))
            found[tuple(name for names in above for name in names)].append(cells)
    return found


def _cells(phases):
    """Return what has to stand in the row of some phases."""
    active = [_active_ns(each) for each in phases]
    durations = [each["ended_ns"] - each["entered_ns"] for each in phases]
    paused = sum(each["paused_ns"] for each in phases)
    unwell = Counter(each["status"] for each in phases)
    return {
        "total": duration(sum(active)),
        "own": duration(sum(each["self_ns"] for each in phases)),
        "p50": duration(_of_sketch(durations, 0.5)),
        "p95": duration(_of_sketch(durations, 0.95)),
        "max": duration(max(durations)),
        "paused": duration(paused) if paused else "",
        "fail": " ".join(f"{unwell[status]}{letter}" for status, letter in LETTERS.items() if unwell[status]),
    }


# --- postmortem -------------------------------------------------------------------------------------------------------


def usual_is_what_records_say(run):
    """How long an open phase's path took before, pauses included, is what the records give, from the one sketch."""
    if run.journal is None:
        return
    before = defaultdict(list)
    for facts in run.journal.phases.values():
        if facts["status"] in FINAL - {"lost"}:
            before[facts["pid"], facts["path"]].append(facts["ended_ns"] - facts["entered_ns"])
    for rank in run.postmortem["ranks"]:
        for phase in rank["open"]:
            durations, said = before[phase["pid"], tuple(phase["path"])], phase["usual"]
            expected = None
            if durations:
                expected = {"count": len(durations), "max_ns": max(durations)}
                expected |= {"median_ns": _of_sketch(durations, 0.5), "p99_ns": _of_sketch(durations, 0.99)}
            if said != expected:
                run.say("postmortem", phase["scope_id"], "usual", records=expected, postmortem=said)
            status = run.journal.phases.get(phase["scope_id"], {}).get("status")
            if run.is_alive and phase["is_paused"] != (status == "paused") and status not in FINAL:
                run.say("postmortem", phase["scope_id"], "is_paused", records=status, postmortem=phase["is_paused"])


# --- output -----------------------------------------------------------------------------------------------------------


def output_is_kept(run):
    """A store has with a phase what that printed, if it was captured, and else nothing."""
    if run.store is None:
        return
    for key, text in run.oracle.printed.items():
        scope = run.keys.get(key)
        if (
            key in run.oracle.ended
            and scope in run.store.phases
            and run.store.phases[scope]["status"] in FINAL - {"lost"}
        ):
            expected = [text] if run.program["tracker"]["capture"] else []
            told = run.store.output[scope]
            if told != expected:
                run.say("output", scope, "output", program=expected, **{run.store.teller: told})


# --- spans ------------------------------------------------------------------------------------------------------------


def spans_look_right(run):
    """A span has the phase's name, the code ERROR if it failed, and the events that the program gave the phase."""
    for story in filter(None, (run.spans, run.resent)):
        for scope, look in story.looks.items():
            facts = story.phases[scope]
            if look["name"] != facts["path"][-1]:
                run.say("span", scope, "name", path=facts["path"], **{story.teller: look["name"]})
            if look["is_error"] != (facts["status"] in _FAILURES):
                run.say("span", scope, "code", status=facts["status"], **{story.teller: look["is_error"]})
            key = run.names.get(scope)
            if story is run.spans and key in run.oracle.ended and key not in run.oracle.moved:
                given, told = (
                    sorted(json.dumps(each) for each in some) for some in (run.oracle.said[key], look["checked"])
                )
                if given != told:
                    run.say("span", scope, "events", program=given, **{story.teller: told})


def pending_spans_are_of_phases(run):
    """A pending span hangs under its phase's, and has its name, its start, its path and its step."""
    for span in run.spans.pending if run.spans is not None else ():
        scope, attributes = span["parentSpanId"], otlp_attributes(span)
        told = next((story.phases[scope] for story in run.stories.values() if scope in story.phases), None)
        expected = told and (told["path"][-1], told["entered_ns"], " / ".join(told["path"]), told["step"])
        path, step = attributes["stormphase.phase.path"], attributes.get("stormphase.step")
        said = span["name"], int(span["startTimeUnixNano"]), path, step
        if said != expected:
            run.say("pending span", scope, "looks", others=expected, spans=said)


def owners_are_spans(run):
    """The span of a session, rank or process has the times and the code of its record."""
    for story in filter(None, (run.spans, run.resent)):
        for teller in filter(None, (run.journal, run.store)):
            for (kind, scope), record in teller.owners.items():
                span = story.owners.get(("span", scope))
                if span is None or record["status"] not in FINAL:
                    continue
                is_error = span.get("status", {}).get("code") == 2
                if is_error != (record["status"] in _FAILURES):
                    said = {teller.teller: record["status"], story.teller: is_error}
                    run.say("owner's span", f"{kind} {scope}", "code", **said)
                for field, name in (("entered_ns", "startTimeUnixNano"), ("ended_ns", "endTimeUnixNano")):
                    if int(span[name]) != record[field]:
                        run.say(
                            "owner's span",
                            f"{kind} {scope}",
                            field,
                            **{teller.teller: record[field], story.teller: span[name]},
                        )


# --- where phases ran -------------------------------------------------------------------------------------------------


def threads_are_as_they_were(run):
    """A phase that did not move says the name of the thread that entered it, also where it was LOST."""
    for key, line in run.oracle.entered.items():
        scope = run.keys.get(key)
        is_told = key not in run.oracle.moved and not run.program["tracker"].get("redact")
        if scope is None or not is_told:
            continue
        for name, story in run.stories.items():
            facts = story.phases.get(scope, {})
            if facts.get("thread_name", line["thread"]) != line["thread"]:
                run.say("thread", scope, "thread_name", program=line["thread"], **{name: facts["thread_name"]})


def lanes_are_stacks(run):
    """What `postmortem` puts on one lane is one thread's, and on a lane of its own stands what a task begins."""
    if run.journal is None:
        return
    for rank in run.postmortem["ranks"]:
        is_open = {phase["scope_id"]: phase for phase in rank["open"]}
        threads = defaultdict(set)
        for scope, phase in is_open.items():
            facts = run.journal.phases.get(scope, {})
            if not facts or key_of(facts) in run.oracle.moved:
                continue
            threads[phase["pid"], phase["lane"]].add(facts["thread_id"])
            above, parent = is_open.get(facts["parent"]), run.journal.phases.get(facts["parent"])
            if above is None or parent is None or key_of(parent) in run.oracle.moved:
                continue
            here, there = (phase["pid"], phase["lane"]), (above["pid"], above["lane"])
            is_one_thread = facts["thread_id"] == parent["thread_id"]
            is_one_stack = is_one_thread and phase["task_name"] == above["task_name"]
            is_wrong = not is_one_stack if here == there else is_one_thread and phase["task_name"] is None
            if here[0] == there[0] and is_wrong:
                run.say("lane", scope, "lane", parent=above, postmortem=phase)
        for lane, of in threads.items():
            if len(of) > 1:
                run.say("lane", None, "thread_id", lane=lane, threads=sorted(of))


def ranks_are_whole(run):
    """Spans, sent or recovered, say of rank and world size what the rank's record does."""
    known = {}
    for teller in filter(None, (run.journal, run.store)):
        for (kind, _), record in teller.owners.items():
            if kind == "rank":
                known |= {"rank": record["rank"], "world_size": record["attributes"]["stormphase.world_size"]}
                known |= {"local_rank": record["attributes"].get("stormphase.local_rank", record["rank"])}
    for story in filter(None, (run.spans, run.resent)):
        for scope, said in story.launches.items():
            wrong = {name: value for name, value in said.items() if known and known[name] != value}
            if wrong:
                run.say("span", scope, "rank", record=known, **{story.teller: wrong})
