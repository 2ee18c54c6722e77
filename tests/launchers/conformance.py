"""What holds under every launcher: each one's test file inherits these tests, and says how it starts ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def check_blame(found: dict[str, Any], culprit: int) -> None:
    """Fail if an innocent rank is blamed, alone or before the culprit."""
    verdict = found["verdict"]
    assert verdict["answer"] == "cannot be told" or culprit in verdict["ranks"], verdict


class Launched:
    """Ranks under one launcher.

    Attributes:
        launcher: its name in an identity.
        ranks: how many are started.
        local_ranks: their places on their hosts, where these are not the ranks.
        program: which of the programs the launcher's ranks run.
    """

    launcher: str
    ranks = 3
    local_ranks: Sequence[int] | None = None
    program = "planted"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return the command that starts all ranks."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def environment(cls) -> dict[str, str]:
        """Return what the launcher needs in its environment."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def launched(cls, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Job:
        """Launch twice, as "first" and "second"; in the first each rank starts two programs as well."""
        job = Job(tmp_path_factory.mktemp(cls.launcher))
        for label, deed in (("first", "start_programs"), ("second", "work")):
            cls.launch(job, cls.rank(job, label, deed), environment)
        return job

    @classmethod
    def rank(cls, job: Job, label: str, deed: str) -> list[str]:
        """Return the command of one rank."""
        return job.rank(label, cls.ranks, deed, program=cls.program)

    @classmethod
    def launch(cls, job: Job, rank: Sequence[str], environment: dict[str, str], *, check: bool = True) -> str:
        """Launch a command as every rank, and wait for the end; return what was written."""
        return job.launch(cls.command(rank), environment=environment, check=check)

    def check(self, job: Job, label: str, kind: str = "rank", *, attempt: int = 0) -> str:
        """Fail unless all ranks of one launch are there and know who they are; return their session."""
        said = job.said(label, kind)
        return check_ranks(said, self.launcher, self.ranks, attempt=attempt, local_ranks=self.local_ranks)

    def test_every_rank_knows_who_it_is(self, launched: Job) -> None:
        """Rank, world size, local rank and launcher are right, and all are one session, with a journal each."""
        session_id = self.check(launched, "first")
        found = launched.postmortem("--session", session_id)
        assert (0, [], []) == (found["attempt"], found["older_attempts"], found["newer_attempts"])
        assert [(rank, "clean") for rank in range(self.ranks)] == [(r["rank"], r["state"]) for r in found["ranks"]]

    def test_two_launches_are_two_sessions(self, launched: Job) -> None:
        """The same command a second time is a session of its own, and the first attempt of that."""
        sessions = {self.check(launched, label) for label in ("first", "second")}
        assert 2 == len(sessions)

    def test_a_program_that_a_rank_starts_is_no_rank(self, launched: Job) -> None:
        """It is alone in a session of its own, with `tracker.environment()` and with the environment as it is."""
        assert [] == launched.refused()
        started = [*launched.said("first-carried"), *launched.said("first-plain")]
        check_alone(started, 2 * self.ranks)
        ranks = {facts["session_id"] for facts in launched.said("first")}
        assert set() == ranks & {facts["session_id"] for facts in started}

    def test_a_killed_rank_is_told_from_those_that_the_launcher_ends(
        self, job: Job, environment: dict[str, str]
    ) -> None:
        """Postmortem knows where each rank stood, and blames none but the killed one, if it can be told at all.

        A launcher may kill the others within milliseconds, and then nothing tells who was first.
        """
        self.launch(job, self.rank(job, "a", "die"), environment, check=False)
        self.check(job, "a")
        found = job.postmortem()
        stood = [["train", "step"] if rank == 1 else ["train", "all_reduce"] for rank in range(self.ranks)]
        assert stood == [each["open"][-1]["path"] for each in found["ranks"]]
        assert "killed" == found["ranks"][1]["state"]
        check_blame(found, 1)


class LaunchedPrograms(Launched):
    """Ranks under a launcher that starts any program."""

    def test_a_rank_that_replaces_itself_is_its_next_attempt(self, job: Job, environment: dict[str, str]) -> None:
        """`os.execv` keeps the process: what it was is over, and it is the same session, started again."""
        self.launch(job, self.rank(job, "a", "replace_itself"), environment)
        session_id = self.check(job, "a")
        assert session_id == self.check(job, "a", "again", attempt=1)

    def test_two_programs_of_one_launch_are_two_sessions(self, job: Job, environment: dict[str, str]) -> None:
        """A rank's shell runs one program after the other: the second is no restart of the first."""
        script = " && ".join(" ".join(self.rank(job, label, "work")) for label in ("first", "second"))
        self.launch(job, ["bash", "-c", script], environment)
        sessions = {self.check(job, label) for label in ("first", "second")}
        assert 2 == len(sessions)
