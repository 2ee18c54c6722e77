"""One run, read by all tellers, and what they disagree about."""

from __future__ import annotations

import json

import attrs
import story_tellers as tellers
from story_oracle import Oracle, key_of


@attrs.frozen
class Disagreement:
    """One thing that two tellers, or a teller and the program, say differently.

    Attributes:
        check: which rule is broken.
        phase: the phase's path, or what else is meant.
        scope: its scope id.
        field: which fact.
        said: by teller, what each says.
    """

    check: str
    phase: str
    scope: str
    field: str
    said: dict

    def __str__(self):
        """Say it on one line."""
        most = {"stacks": None}
        said = "; ".join(f"{teller}: {str(value)[: most.get(teller, 160)]!r}" for teller, value in self.said.items())
        return f"{self.check}: {self.phase} [{self.scope}] {self.field}: {said}"


class Run:
    """What was left of one run, read by all tellers."""

    def __init__(self, directory, program, endpoint=None, status=0, *, is_alive=False):
        """Read; the order of journals and store is the program's to say, since reading a store may change it."""
        self.is_alive = is_alive
        self.program = program
        self.options = program["bridge"] if isinstance(program["bridge"], dict) else {}
        self.found = []
        self.stories = {}
        self.oracle = Oracle(tellers.lines_of(directory / "did.jsonl"), is_killed=status < 0)
        self.sink = self._add(tellers.sink_story(directory / "sink.jsonl"))
        readers = [self._read_journals, self._read_stores]
        if program["order"] == "store_first":
            readers.reverse()
        for read in readers:
            read(directory)
        self._read_spans(directory, endpoint)
        self.stdout = _text(directory / "stdout")
        self.stats = json.loads(_text(directory / "stats.json") or "null")
        self.paths = {}
        for story in self.stories.values():
            for scope, facts in story.phases.items():
                self.paths.setdefault(scope, " / ".join(facts["path"]))
        self.keys = {}  # By the program's own name: the scope id ...
        for story in self.stories.values():
            self.keys.update({key_of(facts): scope for scope, facts in story.phases.items() if key_of(facts)})

        self.names = {scope: key for key, scope in self.keys.items()}  # ... and the other way round.

    def _add(self, story):
        self.stories[story.teller] = story
        return story

    def _read_journals(self, directory):
        self.journal = None
        if not any((directory / "runs").glob("*/*.journal")):
            return
        self.journal = self._add(tellers.read_story("journal", directory / "runs"))
        self._add(tellers.command_story("journal_cli", directory / "runs"))
        is_open, ended, self.postmortem = tellers.postmortem_stories(directory / "runs")
        self._add(is_open)
        self._add(ended)
        recover, self.recovered = tellers.recover_story(directory / "runs")
        self._add(recover)

    def _read_stores(self, directory):
        self.store = None
        if (directory / "memory.jsonl").exists():
            self.store = self._add(tellers.record_story("memory", tellers.lines_of(directory / "memory.jsonl")))
        if (directory / "runs.db").exists():
            # The command first, since it says in the store what became of phases whose process has died.
            command = tellers.command_story("store_cli", directory / "runs.db")
            self.store = self._add(tellers.read_story("store", directory / "runs.db"))
            self._add(command)

    def _read_spans(self, directory, endpoint):
        self.spans = self.resent = None
        if self.program["bridge"] is None:
            return
        documents = [each for path in sorted((directory / "spans").glob("traces-*")) for each in tellers.lines_of(path)]
        self.spans = self._add(tellers.span_story("spans", tellers.spans_of(documents)))
        documents = [each for path in sorted((directory / "spans").glob("logs-*")) for each in tellers.lines_of(path)]
        for story in tellers.event_stories(documents):
            self._add(story)
        if endpoint is not None and self.journal is not None:
            tellers.command("recover", directory / "runs", "--otlp", endpoint.address)
            self.resent = self._add(tellers.span_story("recovered_spans", endpoint.taken()))

    def say(self, check, scope, field, **said):
        """Note a disagreement."""
        self.found.append(Disagreement(check, self.paths.get(scope, "?"), str(scope), field, said))


def _text(path):
    return path.read_text(errors="replace") if path.exists() else ""
