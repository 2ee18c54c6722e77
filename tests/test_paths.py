"""Names and paths: normalised once, interned, bounded, and the same for all threads."""

from __future__ import annotations

import enum
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stormphase._paths import MAX_NAME_CHARS, UNNAMED, PathTable, normalise_name
from stormphase.exceptions import Misuse, PhaseNameError


class Name(str):
    """A string of a user's own class, with a hostile `strip`."""

    __slots__ = ()

    def strip(self, chars=None):
        """Refuse."""
        raise AssertionError("a subclass's methods must not be called")

    def __str__(self):
        raise AssertionError("a subclass's methods must not be called")


class Stage(str, enum.Enum):
    """Names as many programs keep them."""

    TRAIN = "train"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", "train"),
        ("  train\t\n", "train"),
        ("data loading", "data loading"),
        ("schritt über", "schritt über"),
        ("a\nb", r"a\nb"),
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("a\x00b", r"a\x00b"),
        ("lone \ud800", r"lone \ud800"),
        ("<b>&amp;", "<b>&amp;"),
        ("\U0001f525", "\U0001f525"),
        pytest.param(Stage.TRAIN, "train", id="enum"),
        pytest.param(Name(" own class "), "own class", id="own class"),
    ],
)
def test_names_are_stripped_and_made_printable(name, expected):
    """Blanks around go, and what no terminal should get becomes its escape; the rest stays as it is."""
    clean = normalise_name(name)
    assert expected == clean
    assert str is type(clean)


@pytest.mark.parametrize("length", [MAX_NAME_CHARS + 1, 10_240])
@pytest.mark.parametrize("char", ["x", "\x07"])
def test_long_names_are_cut_and_say_so(length, char):
    """A name of 10 kB, also one of control characters that grow by escaping, fits and ends in an ellipsis."""
    clean = normalise_name(char * length)
    assert MAX_NAME_CHARS == len(clean)
    assert "\N{HORIZONTAL ELLIPSIS}" == clean[-1]
    assert normalise_name(char)[0] * 5 == clean[:5] if char == "x" else clean.startswith(r"\x07\x07")


def test_a_name_of_the_longest_allowed_length_stays_whole():
    """The limit itself is allowed, printable or escaped."""
    assert "x" * MAX_NAME_CHARS == normalise_name("x" * MAX_NAME_CHARS)
    assert r"\x07" * (MAX_NAME_CHARS // 4) == normalise_name("\x07" * (MAX_NAME_CHARS // 4))


@pytest.mark.parametrize("name", ["", " ", "\t\n  ", "\u2003"])
def test_blank_names_are_refused_with_the_fix(name):
    """A name of blanks names nothing."""
    with pytest.raises(PhaseNameError, match=r"must not be blank.*Write enter_phase\('step'") as raised:
        normalise_name(name)
    assert name == raised.value.name
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(("name", "kind"), [(None, "NoneType"), (7, "int"), (b"train", "bytes"), (["a"], "list")])
def test_names_that_are_no_strings_are_refused_with_the_fix(name, kind):
    """The message names the type that was given."""
    with pytest.raises(PhaseNameError, match=rf"must be a string, not {kind}\. Write enter_phase\('step'"):
        normalise_name(name)


@given(st.text())
def test_every_text_is_refused_or_becomes_a_harmless_name(text):
    """Whatever comes: printable, bounded, without blanks around, encodable, and normal already."""
    try:
        clean = normalise_name(text)
    except PhaseNameError:
        assert "" == text.strip()
        return
    assert clean.isprintable()
    assert 0 < len(clean) <= MAX_NAME_CHARS
    assert clean == clean.encode().decode()
    assert clean == normalise_name(clean)


def test_paths_are_interned():
    """One name under one parent is one node, whatever blanks were around it."""
    table = PathTable()
    train = table.child(table.root, "train")
    step = table.child(train, "step")
    assert step is table.child(train, "step")
    assert step is table.child(train, " step ")
    assert step is train.children[" step "]
    assert step is not table.child(table.root, "step")
    assert (("train", "step"), "train / step", 2) == (step.names, str(step), step.depth)
    assert ((), "", 0) == (table.root.names, str(table.root), table.root.depth)


def test_names_of_a_path_are_built_once():
    """The second reading gives the same tuple."""
    table = PathTable()
    node = table.child(table.root, "train")
    assert node.names is node.names


def test_a_path_ten_thousand_deep_has_all_its_names():
    """No recursion: as deep as one likes."""
    table = PathTable()
    node = table.root
    for number in range(10_000):
        node = table.child(node, str(number))
    assert tuple(str(number) for number in range(10_000)) == node.names


def test_beyond_the_limit_paths_work_and_are_not_kept():
    """A program with a step number in its names pays with speed, not with memory."""
    table = PathTable(max_paths=2)
    first, second = (table.child(table.root, name) for name in ("a", "b"))
    third = table.child(table.root, "c")
    assert (("c",), first) == (third.names, table.child(table.root, "a"))
    assert ["a", "b"] == list(table.root.children)
    assert third is not table.child(table.root, "c")
    assert second is table.child(table.root, " b ")
    assert ["a", "b"] == list(table.root.children), "an odd spelling counts against the limit too"


def test_an_odd_spelling_takes_the_last_place_only_while_there_is_one():
    """A spelling counts as a kept path of its own."""
    table = PathTable(max_paths=3)
    for name in (" a ", "b", "c"):
        table.child(table.root, name)
    assert ["a", " a ", "b"] == list(table.root.children)


def test_threads_that_see_a_name_at_once_get_one_node():
    """The table locks at first sight."""
    table = PathTable()
    barrier = threading.Barrier(8)
    found = []

    def look() -> None:
        for number in range(50):
            barrier.wait()
            found.append(table.child(table.root, f"name {number}"))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50 == len(set(map(id, found)))


def test_a_forked_child_gets_a_lock_of_its_own():
    """A lock that some thread of the parent held at the fork would never be given back."""
    table = PathTable()
    table._lock.acquire()
    table.renew_lock()
    assert ("a",) == table.child(table.root, "a").names


# --- as phases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "  ", None, 3, ["unhashable"], {}])
def test_a_bad_name_enters_nothing(lanes, name):
    """A strict recorder refuses it, and nothing has changed."""
    with lanes.enter_phase("train") as train:
        with pytest.raises(PhaseNameError):
            lanes.enter_phase(name)
        assert [train] == list(lanes.open_phases())
        assert train is lanes.carrier.current_phase()


@pytest.mark.parametrize("name", ["", "  ", None, 3, ["unhashable"], {}])
def test_a_bad_name_is_counted_and_replaced_where_misuse_is_only_recorded(lenient, ended, name):
    """Production goes on, with a phase that has no name."""
    with lenient.enter_phase(name) as phase:
        assert (UNNAMED,) == phase.path
    assert [phase] == ended
    assert 1 == lenient.counts[Misuse.BAD_NAME]


def test_a_name_that_equals_another_one_finds_it(lanes):
    """A user's string class whose hash is that of a known name costs no second node."""
    with lanes.enter_phase("train") as plain:
        pass
    with lanes.enter_phase(Stage.TRAIN) as enumerated:
        pass
    assert plain._path is enumerated._path


def test_odd_spellings_share_one_path(lanes):
    """Blanks around a name make no other phase."""
    with lanes.enter_phase(" train ") as first, lanes.enter_phase("step\t") as second:
        pass
    assert ("train", ("train", "step"), "train / step") == (first.name, second.path, second.phase_path)
