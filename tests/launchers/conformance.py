"""What holds under every launcher: each one's test file inherits these tests, and says how it starts ranks."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .job import Job

_ALONE = {"rank": 0, "world_size": 1, "local_rank": 0, "launcher": "single"}


def place_of(facts: dict[str, Any]) -> dict[str, Any]:
    """Return of what a process said where it stands among others."""
    return {name: facts[name] for name in _ALONE}


def check_alone(said: list[dict[str, Any]], count: int) -> None:
    """Fail unless so many processes were there, each alone in a session of its own."""
    assert [_ALONE] * count == [place_of(facts) for facts in said]
    assert count == len({facts["session_id"] for facts in said})
    assert {0} == {facts["attempt"] for facts in said}


def check_ranks(
    said: list[dict[str, Any]], launcher: str, ranks: int, *, attempt: int = 0, local_ranks: Sequence[int] | None = None
) -> str:
    """Fail unless these are all ranks of one session and attempt; return its id."""
    local_ranks = range(ranks) if local_ranks is None else local_ranks
    expected = [
        {"rank": rank, "world_size": ranks, "local_rank": local_rank, "launcher": launcher}
        for rank, local_rank in zip(range(ranks), local_ranks, strict=True)
    ]
    assert expected == [place_of(facts) for facts in said]
    assert [attempt] * ranks == [facts["attempt"] for facts in said]
    (session_id,) = {facts["session_id"] for facts in said}
    return session_id


class Launched:
    """Ranks under one launcher.

    Attributes:
        launcher: its name in an identity.
        ranks: how many are started.
        program: which of the programs the launcher's ranks run.
        environment: what the launcher needs in its environment.
    """

    launcher: str
    ranks = 3
    program = "planted"
    environment: Mapping[str, str] = MappingProxyType({})

    def command(self, ranks: int, rank: Sequence[str]) -> list[str]:
        """Return the command that starts so many ranks."""
        raise NotImplementedError

    def start(self, job: Job, label: str, deed: str, *, check: bool = True) -> str:
        """Launch, wait for the end, and return what was written."""
        rank = job.rank(label, self.ranks, deed, program=self.program)
        return self.launch(job, rank, check=check)

    def launch(self, job: Job, rank: Sequence[str], *, check: bool = True) -> str:
        """Launch any command as every rank."""
        return job.launch(self.command(self.ranks, rank), environment=self.environment, check=check)

    def test_every_rank_knows_who_it_is(self, job: Job) -> None:
        """Rank, world size, local rank and launcher are right, and all are one session, with a journal each."""
        self.start(job, "a", "work")
        session_id = check_ranks(job.said("a"), self.launcher, self.ranks)
        found = job.postmortem()
        assert (session_id, 0, []) == (found["session_id"], found["attempt"], found["other_sessions"])
        assert [(rank, "clean") for rank in range(self.ranks)] == [(r["rank"], r["state"]) for r in found["ranks"]]

    def test_two_launches_are_two_sessions(self, job: Job) -> None:
        """The same command a second time is a session of its own, and the first attempt of that."""
        sessions = []
        for label in ("first", "second"):
            self.start(job, label, "work")
            sessions.append(check_ranks(job.said(label), self.launcher, self.ranks))
        assert 2 == len(set(sessions))

    def test_a_killed_rank_is_named(self, job: Job) -> None:
        """Postmortem blames it, and no rank that its launcher ended, and knows where each of them stood."""
        self.start(job, "a", "die", check=False)
        check_ranks(job.said("a"), self.launcher, self.ranks)
        found = job.postmortem()
        assert 1 == found["suspects"][0]["rank"]
        stood = [["train", "step"] if rank == 1 else ["train", "all_reduce"] for rank in range(self.ranks)]
        assert stood == [each["open"][-1]["path"] for each in found["ranks"]]
        assert "killed" == found["ranks"][1]["state"]

    def test_a_program_that_a_rank_starts_is_no_rank(self, job: Job) -> None:
        """It is alone in a session of its own, with `tracker.environment()` and with the environment as it is."""
        self.start(job, "a", "start_programs")
        assert [] == job.refused()
        session_id = check_ranks(job.said("a"), self.launcher, self.ranks)
        started = [*job.said("a-carried"), *job.said("a-plain")]
        check_alone(started, 2 * self.ranks)
        assert session_id not in {facts["session_id"] for facts in started}


class LaunchedPrograms(Launched):
    """Ranks under a launcher that starts any program."""

    def test_a_rank_that_replaces_itself_is_its_next_attempt(self, job: Job) -> None:
        """`os.execv` keeps the process: what it was is over, and it is the same session, started again."""
        self.start(job, "a", "replace_itself")
        assert [] == job.refused()
        session_id = check_ranks(job.said("a"), self.launcher, self.ranks)
        assert session_id == check_ranks(job.said("a", "again"), self.launcher, self.ranks, attempt=1)

    def test_two_programs_of_one_launch_are_two_sessions(self, job: Job) -> None:
        """A rank's shell runs one program after the other: the second is no restart of the first."""
        script = " && ".join(" ".join(job.rank(label, self.ranks, "work")) for label in ("first", "second"))
        self.launch(job, ["bash", "-c", script])
        sessions = [check_ranks(job.said(label), self.launcher, self.ranks) for label in ("first", "second")]
        assert 2 == len(set(sessions))
