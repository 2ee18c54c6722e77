"""Compares what the tellers of one run say, with each other and with what the program itself wrote down.

The rule: of a phase that two tellers know they say the same, fact by fact; one that knows less says less. What the
program is certain of must be known: its journal has every phase that was entered.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict

from story_figures import (
    lanes_are_stacks,
    output_is_kept,
    owners_are_spans,
    pending_spans_are_of_phases,
    ranks_are_whole,
    spans_look_right,
    summary_adds_up,
    threads_are_as_they_were,
    usual_is_what_records_say,
)
from story_oracle import key_of
from story_tellers import FINAL

# What is the same at enter and at the end ...
IDENTITY = (
    "path", "entered_ns", "entered_monotonic_ns", "attempt", "retry_of", "step", "is_sync", "sequence",
    "session_id", "session_attempt", "rank", "pid", "correlation_id",
)  # fmt: skip
# ... what changes where a phase moves to another thread or task ...
OWNER = ("thread_id", "thread_name", "task_name")
# ... and what only its end says.
END = (
    "status", "ended_ns", "ended_monotonic_ns", "self_ns", "paused_ns", "error_type", "error_message", "traceback",
    "cause", "cause_path", "reason", "evidence",
)  # fmt: skip
LIVE = ("sink", "memory", "spans", "exit_event")  # They speak before anybody can know that another process has died.
OURS = ("op", "key")  # The program's own name for a phase.
DEATHS = ("BrokenProcessPool", "EOFError", "CalledProcessError", "ChildProcessError", "BrokenPipeError")
SPANS = ("spans", "recovered_spans")
EXITS = ("spans", "recovered_spans", "exit_event", "postmortem_ended")  # They tell of ended phases only.


def compare(run):
    """Return all disagreements of a run."""
    for check in WHILE_ALIVE if run.is_alive else CHECKS:
        check(run)
    return run.found


# --- two tellers ------------------------------------------------------------------------------------------------------


def tell_the_same(run):
    """Of a phase that two tellers know they say the same."""
    for scope in run.paths:
        told = {name: story.phases[scope] for name, story in run.stories.items() if scope in story.phases}
        ended = {name: facts for name, facts in told.items() if _is_end(facts) or name in EXITS}
        is_moved = any(key_of(facts) in run.oracle.moved for facts in told.values())
        for field in IDENTITY:
            _same(run, scope, field, told)
        for field in OWNER:
            _same(run, scope, field, ended if is_moved else told)
        for field in END:
            _same(run, scope, field, _without_live(ended) if _is_of_a_death(field, ended) else ended)
        _same_attributes(run, scope, told, ended)
        _same_duration(run, scope, ended)
        _same_parent_and_links(run, scope, told)


def _same(run, scope, field, told):
    said = {name: facts[field] for name, facts in told.items() if field in facts and not _is_less(name, field, facts)}
    if len({json.dumps(value) for value in said.values()}) > 1:
        run.say("tellers differ", scope, field, **said)


def _is_end(facts):
    return facts.get("status") in FINAL and not _is_guess(facts)


def _is_guess(facts):
    """Whether a store beside which nobody keeps a journal says that it does not know what came last."""
    return facts.get("status") == "lost" and "is not known" in (facts.get("reason") or "")


def _is_less(name, field, facts):
    """Whether a teller cannot know: a journal has a task's name only with the outermost phase of its lane."""
    return field == "task_name" and facts[field] is None and name not in ("sink", "memory", "store", "store_cli")


def _is_of_a_death(field, ended):
    is_cause = field in ("cause", "cause_path", "traceback")
    return is_cause and any(str(facts.get("error_type")).endswith(DEATHS) for facts in ended.values())


def _without_live(told):
    return {name: facts for name, facts in told.items() if name not in LIVE}


def _same_attributes(run, scope, told, ended):
    said = {name: _attributes(name, facts) for name, facts in ended.items() if "attributes" in facts}
    lost = {name for name, facts in ended.items() if facts.get("status") == "lost"}
    if len({json.dumps(value, sort_keys=True) for name, value in said.items() if name not in lost}) > 1:
        run.say("tellers differ", scope, "attributes", **said)
    key = run.names.get(scope)
    if key not in run.oracle.entered:
        return
    given, late = run.oracle.entered[key]["attributes"], run.oracle.late[key]
    for name, facts in told.items():
        for attribute, value in facts.get("attributes", {}).items():
            known = [*([given[attribute]] if attribute in given else []), *late[attribute]]
            if attribute not in OURS and value not in known and not _is_redacted(run, value):
                run.say("attributes", scope, attribute, program=known, **{name: value})
        if "attributes" in facts and given.keys() - facts["attributes"].keys():
            run.say("attributes", scope, "given at enter", program=given, **{name: facts["attributes"]})


def _is_redacted(run, value):
    return value == "[redacted]" and bool(run.program["tracker"].get("redact"))


def _same_duration(run, scope, ended):
    """An exit event says in seconds what the others' times say."""
    event = ended.get("exit_event", {})
    for name, facts in ended.items():
        if (
            "entered_ns" in facts
            and event
            and round(event["duration_s"] * 1e9) != facts["ended_ns"] - facts["entered_ns"]
        ):
            run.say("tellers differ", scope, "duration", exit_event=event["duration_s"], **{name: facts})


def _attributes(name, facts):
    return {key: value for key, value in facts["attributes"].items() if key not in OURS}


def _same_parent_and_links(run, scope, told):
    parents = {facts["parent"] for facts in told.values() if "parent" in facts}
    begins_trace = run.options.get("trace_per") == run.paths[scope].rpartition(" / ")[2]
    if (
        len(
            {
                json.dumps(facts["parent"])
                for name, facts in told.items()
                if "parent" in facts and not (begins_trace and name in SPANS)
            }
        )
        > 1
    ):
        run.say("tellers differ", scope, "parent", **{name: facts.get("parent") for name, facts in told.items()})
    for name in SPANS:
        facts = told.get(name)
        if facts is None:
            continue
        if "parent_or_owner" in facts and parents and facts["parent_or_owner"] not in parents and not begins_trace:
            owners = {each for story in run.stories.values() for _, each in story.owners}
            is_owner = facts["parent_or_owner"] in owners or not (owners or facts["parent_or_owner"] in run.paths)
            if parents != {None} or not is_owner:
                run.say("tellers differ", scope, "parent", others=parents, **{name: facts["parent_or_owner"]})
        retried = {each["retry_of"] for each in told.values() if each.get("retry_of")}
        if retried and not retried & set(facts["links"]):
            run.say("tellers differ", scope, "retry link", others=retried, **{name: facts["links"]})


def tell_once(run):
    """Nobody tells of a phase twice."""
    for name, story in run.stories.items():
        for scope in story.twice:
            run.say("told twice", scope, "scope_id", **{name: "twice"})


def commands_say_what_python_says(run):
    """`stormphase records` says what `read_records` does."""
    for name in ("journal", "store"):
        if name in run.stories:
            by_python, by_command = run.stories[name].phases, run.stories[f"{name}_cli"].phases
            for scope in by_python.keys() | by_command.keys():
                if by_python.get(scope) != by_command.get(scope):
                    run.say(
                        "command differs", scope, "record", python=by_python.get(scope), command=by_command.get(scope)
                    )


def owners_are_the_same(run):
    """The records of session, ranks and processes are the same in a store and in journals."""
    if run.journal is None or run.store is None:
        return
    for key in run.journal.owners.keys() & run.store.owners.keys():
        said, other = run.journal.owners[key], run.store.owners[key]
        for field, value in said.items():
            if field not in ("output", "traceback") and value != other[field]:
                run.say("owners differ", key, field, journal=value, store=other[field])
    if run.store.teller != "memory":
        for key in run.journal.owners.keys() ^ run.store.owners.keys():
            run.say("owners differ", key, "record", journal=key in run.journal.owners, store=key in run.store.owners)


def open_ones_are_the_same(run):
    """What `postmortem` has as open and `recover` as lost is what `records` has as lost."""
    if run.journal is None:
        return
    lost = {scope for scope, facts in run.journal.phases.items() if facts["status"] == "lost"}
    unfinished = {scope for scope, facts in run.journal.phases.items() if facts["status"] not in FINAL}
    for scope in unfinished | lost:
        pid, status = run.journal.phases[scope]["pid"], run.journal.phases[scope]["status"]
        if (scope in unfinished) != (run.is_alive and pid == run.oracle.main_pid):
            run.say("life", scope, "status", journal=status, alive=run.is_alive)
    for name, expected in (("postmortem_open", lost | unfinished), ("recover", lost)):
        for scope in run.stories[name].phases.keys() ^ expected:
            run.say("open phases", scope, name, journal=scope in lost, **{name: scope in run.stories[name].phases})


# --- the program's own word -------------------------------------------------------------------------------------------


def journal_knows_all(run):
    """What was entered for certain is in the journal, and in what stands beside it."""
    if run.journal is None:
        if run.program["journal"] and run.oracle.entered:
            run.say("unknown", None, "journal", program=len(run.oracle.entered), journal=None)
        return
    known = {key_of(facts) for facts in run.journal.phases.values()}
    for key, line in run.oracle.entered.items():
        if key not in known:
            run.say("unknown", run.keys.get(key, line["scope"]), "phase", program=line, journal=None)
    if run.store is not None and run.store.teller == "store":
        unsure = {run.keys.get(key) for key in run.oracle.unsure}
        for scope in run.journal.phases.keys() - run.store.phases.keys() - _quiet(run) - unsure:
            run.say("unknown to the store", scope, "phase", journal=run.journal.phases[scope]["status"], store=None)


def _quiet(run):
    return {run.keys.get(key) for key in run.oracle.quiet}


def all_know_what_was_flushed(run):
    """What a flush has confirmed is known to sink and store; after an end in order, everything."""
    confirmed = dict(run.oracle.flushed)
    if run.oracle.is_over:
        confirmed[run.oracle.main_pid] = len(run.oracle.lines)
    for number, line in enumerate(run.oracle.lines):
        certain = {"entered": run.oracle.entered, "ended": run.oracle.ended}.get(line["did"], ())
        is_due = number < confirmed.get(line["pid"], 0) and line.get("key") in certain
        if not is_due or line["key"] in run.oracle.quiet:
            continue
        for name in _who_must_know(run, line):
            facts = {key_of(facts): facts for facts in run.stories[name].phases.values()}.get(line["key"])
            if facts is None:
                run.say("flushed and unknown", run.keys.get(line["key"]), line["did"], program=line, **{name: None})
            elif line["did"] == "ended" and facts.get("status") not in FINAL:
                told = {name: facts.get("status")}
                run.say("flushed and open", run.keys.get(line["key"]), "status", program=line["status"], **told)


def _who_must_know(run, line):
    """Return the tellers that were waited for: a store in memory is only seen once its own process has ended."""
    known = {"sink", "store", "memory"} & run.stories.keys()
    if run.program.get("sinks", "one") == "none":
        known.discard("sink")
    if line["pid"] in run.oracle.workers:
        known.discard("sink")
    if not run.oracle.is_over or line["pid"] != run.oracle.main_pid:
        known.discard("memory")
    return sorted(known)


def events_are_out_when_flushed(run):
    """With events="all" a flush that returned True has sent every enter and exit."""
    if run.options.get("events") != "all" or run.options.get("events_to", "logs") != "logs" or _has_no_logs(run):
        return
    known = {"entered": run.stories["enter_event"].phases, "ended": run.stories["exit_event"].phases}
    for number, line in enumerate(run.oracle.lines):
        scope = run.keys.get(line.get("key"))
        if line["pid"] in run.oracle.workers:
            continue
        is_due = number < run.oracle.flushed.get(line["pid"], 0) and line["did"] in known
        if is_due and scope is not None and line["key"] not in run.oracle.quiet and scope not in known[line["did"]]:
            run.say("flushed and unknown", scope, f"{line['did']} event", program=line)


def _has_no_logs(run):
    return run.options.get("logger_provider", "own") == "global" and "logger_provider" in run.options


def ends_are_as_they_were(run):
    """What ended for certain is told with the status and the root cause that it had."""
    for key, line in run.oracle.ended.items():
        scope = run.keys.get(key)
        cause = None if line["cause"] is None else run.keys.get(line["cause"])
        for name, story in run.stories.items():
            facts = story.phases.get(scope)
            if facts is None or (facts.get("status") is None and name not in EXITS):
                continue
            if facts.get("status", line["status"]) != line["status"]:
                is_open = facts["status"] not in FINAL and (run.is_alive or name in ("sink", "memory"))
                if not is_open and not _is_guess(facts):
                    run.say(
                        "status",
                        scope,
                        "status",
                        program=line["status"],
                        error=line["error"],
                        **{name: facts["status"]},
                    )
            elif cause is not None and "cause" in facts and facts["cause"] != cause:
                run.say(
                    "root cause",
                    scope,
                    "cause",
                    program=cause,
                    error=line["error"],
                    of=run.paths.get(cause),
                    **{name: facts["cause"]},
                    its=run.paths.get(facts["cause"]),
                )


def starts_are_as_they_were(run):
    """Scope id, path and which try it is are what the handle said."""
    for key, line in run.oracle.entered.items():
        scopes = {
            name: scope
            for name, story in run.stories.items()
            for scope, facts in story.phases.items()
            if key_of(facts) == key
        }
        if len({*scopes.values(), line["scope"] or next(iter(scopes.values()), None)}) > 1:
            run.say("scope id", run.keys[key], "scope_id", program=line["scope"], **scopes)
        scope = run.keys.get(key)
        if scope is None:
            continue
        if line["path"] and run.paths[scope] != " / ".join(line["path"]):
            run.say("path", scope, "path", program=line["path"], others=run.paths[scope])
        for field in ("attempt", "retry_of"):
            for name, story in run.stories.items():
                facts = story.phases.get(scope, {})
                if field in line and field in facts and facts[field] != line[field]:
                    run.say("retry", scope, field, program=line[field], **{name: facts[field]})


# --- sums -------------------------------------------------------------------------------------------------------------


def times_add_up(run):
    """No phase ends before it begins, and own time, pauses and children on the lane are its duration."""
    for name in ("sink", "journal", "store", "memory"):
        phases = run.stories[name].phases if name in run.stories else {}
        if name != "journal" and run.oracle.quiet:
            continue  # It was not told of all of them.
        children = defaultdict(list)
        for scope, facts in phases.items():
            children[facts["parent"]].append(scope)
        for scope, facts in phases.items():
            if facts.get("status") in FINAL:
                _adds_up(run, name, scope, facts, [phases[child] for child in children[scope]])


def _lane(facts):
    return facts["thread_id"], facts["task_name"], str(key_of(facts)).split(":")[1:2]


def _adds_up(run, name, scope, facts, children):
    duration = facts["ended_ns"] - facts["entered_ns"]
    if duration < 0 or facts.get("self_ns", 0) < 0 or facts.get("paused_ns", 0) < 0:
        run.say("time", scope, "duration", **{name: facts})
    is_plain = all(
        key_of(each) not in run.oracle.moved and each.get("status") in FINAL - {"lost"} for each in [facts, *children]
    )
    if not is_plain or "self_ns" not in facts:
        return
    inside = sum(
        each["ended_ns"] - each["entered_ns"] - each["paused_ns"] for each in children if _lane(each) == _lane(facts)
    )
    if facts["self_ns"] + facts["paused_ns"] + inside != duration:
        run.say(
            "time",
            scope,
            "self_ns",
            **{name: facts["self_ns"]},
            duration=duration,
            paused=facts["paused_ns"],
            inside=inside,
        )


def counts_add_up(run):
    """What sinks were offered they were handed, or it was dropped and counted."""
    for name, counts in (run.stats or {}).get("sinks", {}).items():
        if counts["offered"] != counts["handed_over"] + counts["dropped"] + counts.get("queued", 0):
            run.say("counts", None, name, stats=counts)


_ROW = re.compile(r"^(?P<indent> *)(?:\(\d+\) )?(?P<name>[a-z_ /\u2026]+?) +(?P<count>[\d,]+) +\d")


def summary_counts(run):
    """The summary has as many phases as the sink was told have ended, all paths together."""
    if "wall time" not in run.stdout or run.program.get("sinks", "one") == "none" or run.oracle.quiet:
        return
    text = run.stdout[run.stdout.rindex("stormphase: ") :]
    counted = Counter()
    for row in filter(None, map(_ROW.match, text.splitlines())):
        counted[row["name"].strip().rpartition(" / ")[2]] += int(row["count"].replace(",", ""))
    ended = Counter(facts["path"][-1] for facts in run.sink.exits.values() if _is_main(run, facts))
    if "more)" in text or any(key_of(facts) in run.oracle.unsure for facts in run.sink.exits.values()):
        return
    if "\u2026" in text:  # Long names are cut.
        counted, ended = (Counter({"all": sum(each.values())}) for each in (counted, ended))
    if counted != ended:
        run.say("summary", None, "counts", summary=dict(counted - ended), sink=dict(ended - counted))


def _is_main(run, facts):
    line = run.oracle.entered.get(key_of(facts))
    return line is None or line["pid"] == run.oracle.main_pid


def spans_arrive(run):
    """Every phase of a process that is dead is a span, and its rank and session: what it did not send, recovery did."""
    if run.resent is None or "OTEL_TRACES_SAMPLER" in run.program["environ"]:
        return
    for kind, scope in run.journal.owners:
        if kind in ("session", "rank") and ("span", scope) not in {**run.spans.owners, **run.resent.owners}:
            run.say("no span", f"{kind} {scope}", "span", journal=run.journal.owners[kind, scope]["status"])
    sent = run.spans.phases.keys() | run.resent.phases.keys() | _quiet(run)
    # With `trace_per`, what was under a phase whose record has gone may be in a trace that nothing tells any more.
    excused = {each["pid"]: each["unplaced"] + each["unsampled"] for each in run.recovered["journals"]}
    for scope in run.journal.phases.keys() - sent:
        facts = run.journal.phases[scope]
        if facts["pid"] in run.oracle.workers:
            continue
        excused[facts["pid"]] = excused.get(facts["pid"], 0) - 1
        if excused[facts["pid"]] < 0:
            run.say("no span", scope, "span", journal=facts["status"], pid=facts["pid"])


# A store and spans may be behind while the program runs, and nobody may say what is not so.
WHILE_ALIVE = (
    tell_the_same,
    tell_once,
    open_ones_are_the_same,
    ends_are_as_they_were,
    starts_are_as_they_were,
    times_add_up,
    usual_is_what_records_say,
    threads_are_as_they_were,
    lanes_are_stacks,
)
CHECKS = (
    tell_the_same, tell_once, commands_say_what_python_says, owners_are_the_same, open_ones_are_the_same,
    journal_knows_all, all_know_what_was_flushed, events_are_out_when_flushed, ends_are_as_they_were,
    starts_are_as_they_were, times_add_up, counts_add_up, summary_counts, spans_arrive,
    summary_adds_up, usual_is_what_records_say, spans_look_right, owners_are_spans, output_is_kept,
    pending_spans_are_of_phases, threads_are_as_they_were, lanes_are_stacks, ranks_are_whole,
)  # fmt: skip
