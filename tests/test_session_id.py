"""What may be a session id, from the caller, the environment or a launcher."""

from __future__ import annotations

import enum

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase._launchers import SINGLE
from stormphase._process_facts import ProcessFacts
from stormphase._session_id import MAX_SESSION_ID_CHARS, SESSION_VARIABLE, find_session_id
from stormphase.exceptions import ConfigurationError

PROCESS = ProcessFacts(host="node7", pid=4_001)


def given_id(session_id: object, environ: dict[str, str] | None = None) -> str:
    """Return the id of a process alone, to whom the caller gave this one."""
    return find_session_id(environ or {}, PROCESS, SINGLE, session_id).session_id


def launchers_id(job_id: str) -> str:
    """Return the id of a process whose launcher names this job."""
    return find_session_id({}, PROCESS, attrs.evolve(SINGLE, job_id=job_id), None).session_id


BAD_SESSION_IDS = [
    "",
    ".",
    "..",
    "a/b",
    "../x",
    "a\0b",
    "a b",
    "a\n",
    "\x1b[31m",
    "é",
    "a" * (MAX_SESSION_ID_CHARS + 1),
    "a" * 300,
    "C:x",
    "\udcff",
]


@pytest.mark.parametrize("session_id", BAD_SESSION_IDS, ids=map(str, range(len(BAD_SESSION_IDS))))
def test_ids_that_could_leave_their_directory_are_refused(session_id):
    """What cannot safely name a directory is refused from the caller and from the environment, shown harmlessly."""
    with pytest.raises(ConfigurationError) as caught:
        given_id(session_id)
    assert "session_id" == caught.value.setting
    assert caught.value.fix.startswith("Use 1 to 128 of the characters A-Z a-z 0-9 . _ + = @ -")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    if session_id:
        with pytest.raises(ConfigurationError, match=f"^{SESSION_VARIABLE} is "):
            given_id(None, {SESSION_VARIABLE: session_id})


def test_an_id_of_another_type_is_refused():
    """A number or a path is not guessed to be a string."""
    with pytest.raises(ConfigurationError, match=r"^session_id is of type int\."):
        given_id(7)


class Job(str, enum.Enum):
    """The ids of jobs, as some programs keep them."""

    DIGITS = "digits-1"


def test_a_member_of_an_enum_is_its_text():
    """Formatted, such a member may show its name: the same id must come out everywhere."""
    assert ("digits-1", str) == (given_id(Job.DIGITS), type(given_id(Job.DIGITS)))


@given(st.text("abzAZ059._+=@-", min_size=1, max_size=MAX_SESSION_ID_CHARS).filter(lambda text: text not in ".."))
def test_other_ids_are_taken_as_they_are(session_id):
    """Whatever is safe is kept letter by letter."""
    assert session_id == given_id(session_id) == launchers_id(session_id)


@given(st.text(min_size=1))
def test_a_launchers_id_always_becomes_a_session_id(job_id):
    """A launcher's id may be any text: it becomes a safe session id, and another text another one."""
    found = launchers_id(job_id)
    assert found == given_id(found)
    assert launchers_id(job_id + "x") != found


def test_ids_that_look_alike_when_cleaned_stay_apart():
    """A digest keeps apart what the replaced characters told apart."""
    first, second = launchers_id("a/b"), launchers_id("a b")
    assert first != second
    assert "a_b" == first[:3] == second[:3]
