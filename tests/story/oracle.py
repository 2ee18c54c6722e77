"""What a program itself wrote down while it ran: what is certain, whoever tells it otherwise."""

from __future__ import annotations

from collections import defaultdict

ENDS = ("over", "raised")  # What the main thread says last, before the session stops.
NOTHING = "0" * 16  # The scope id of what is no phase.


class Oracle:
    """What the program wrote down while it ran."""

    def __init__(self, lines, *, is_killed):
        self.lines = lines
        self.entered, self.ended, self.late = {}, {}, defaultdict(lambda: defaultdict(list))
        self.said = defaultdict(list)  # The events that a phase was given.
        self.printed = {}  # By phase: a line that it printed.
        self.unsure = set()  # What began or ended while the session stopped: a sink may have dropped it, and said so.
        self.moved, self.quiet = set(), set()  # Moved to another lane; kept from sinks by a filter, unless they fail.
        self.flushed = {}  # By process: how many of the lines a flush has confirmed.
        flushing = {}
        stopping = set()
        for number, line in enumerate(lines):
            key, did, pid = line.get("key"), line["did"], line["pid"]
            if did in ENDS or (did, line.get("how")) == ("killing", "stop_on_sigterm"):
                stopping.add(pid)
            if did == "flushing":
                flushing[pid] = number
            elif did == "flushed" and line["ok"]:
                self.flushed[pid] = max(self.flushed.get(pid, 0), flushing[pid])
            elif key is not None:
                # Once a session stops, nothing that threads do is certain.
                self._note(key, did, line, is_certain=pid not in stopping and line.get("scope") != NOTHING)
        self.moved.update(key for key, line in self.entered.items() if line.get("moves"))
        self.quiet.update(key for key, line in self.entered.items() if line.get("quiet"))
        # Programs of their own and their children, which have neither this one's sinks nor its providers.
        self.workers = set()
        for line in lines:
            if line["did"] == "works" or line["parent"] in self.workers:
                self.workers.add(line["pid"])
        self.main_pid = lines[0]["pid"] if lines else None
        self.is_over = not is_killed and any(line["did"] in ENDS and line["pid"] == self.main_pid for line in lines)

    def _note(self, key, did, line, *, is_certain):
        if did in ("entered", "ended") and not is_certain:
            self.unsure.add(key)
        if did == "entered" and is_certain:
            self.entered[key] = line
        elif did == "ended" and is_certain:
            self.ended[key] = line
        elif did == "saying" and str(line["pid"]) in key.split(":"):  # A forked child's word is not its parent's.
            self.said[key].append(line["attributes"])
        elif did == "printing":
            self.printed[key] = line["text"]
        elif did == "moved":
            self.moved.add(key)
        elif did == "setting":
            for name, value in line["attributes"].items():
                self.late[key][name].append(value)

    def pid_of(self, key):
        """Return the process that entered a phase, None if that is not known."""
        return self.entered[key]["pid"] if key in self.entered else None


def key_of(facts):
    """Return the name that the program gave a phase."""
    attributes = facts.get("attributes") or {}
    return attributes.get("op") or attributes.get("key")
