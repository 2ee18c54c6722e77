"""Measures what redaction costs the thread that has something to say, whatever that is: by the library's own patterns.

    python tests/benchmarks/redaction.py             # a minute, on the stormphase that this Python has
    python tests/benchmarks/redaction.py --all       # each text, not the dearest ones only

Texts of 4 KiB that are prose, tables, tokens or made to cost much, each pattern's worst begin among them, and of 64 KiB
and 1 MiB, in CPU time, for how it grows. Both halves are measured in rounds that take turns; the best of them counts.
Then the way around it in the half that is loaded: an attribute at enter, an exception of 24 KB, a line that is printed.
It exits with 1 if a budget is exceeded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING

from stormphase import PhaseTracker, _native, _secret_spans
from stormphase._redaction import REDACTED, Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGETS_US = {"compiled": 40.0, "Python": 400.0}
KIB = 1_024
SIZE = 4 * KIB
LARGE_ROUNDS = 5
LARGER = (64 * KIB, 1_024 * KIB)

# What is repeated until the text is long enough.
PIECES = {
    "plain prose": "lorem ipsum dolor sit amet consectetur ",
    "prose with 'key' and 'token'": "The author of the key insight says that each token of the input is a vector. ",
    "the word token": "token ",
    "tokens of text": "generated token ",
    "the word password": "password ",
    "the word secret": "secret",
    "words that tokens have before them": "e token ",
    "words without values": "pwd ",
    "words in one name": "pwd_",
    "names of two words": "api key.",
    "begins of words": "passphras",
    "first words": "app",
    "session.": "session.",
    "key=": "key=",
    "values": "pwd=a,",
    "numbers of tokens": "token=1,",
    "api_key=": "api_key=a,",
    "keys of none": "x_key=",
    "keys of one of many": "cloudflar_key=",
    "keys by their last word": "ssh_key ",
    "values by their last word": "ssh-key=a,",
    "passes": "db_pass ",
    "quoted values": 'pwd="a",',
    "quotes": '"',
    "open quotes": "pwd='pwd=\"",
    "escapes": 'pwd="\\',
    "options": "--pwd a ",
    "options side by side": "--pwd ,",
    "other options": "--a b ",
    "dashes": "-",
    "a table": "-" * 80 + "\n| loss | 0.1 |\n",
    "equals": "=",
    "colons": ":",
    "equals, colons, quotes": "=:\"'",
    "spaces": " ",
    "spaces before a sign": "token        =",
    "keys that do not end": "-----BEGIN PRIVATE KEY-----",
    "keys": "-----BEGIN PRIVATE KEY-----a-----END",
    "begins of keys": "-----BEGIN PRIVATE PRIVATE ",
    "base64": "QWxhZGRpbjpvcGVuIHNlc2FtZQ9+/8",
    "AKIA": "AKIA",
    "AKIA and 16": "AKIAABCDEFGHIJKLMNOP,",
    "one letter": "a",
    "another letter": "s",
    "a letter of Latin-1": "é",
    "Chinese": "日本",
    "pictures": "\U0001f600",
    "surrogates": "\udc80",
    "letters in lower case as ASCII": "to\u212aen ",
    "names of other letters": "étoken=x ",
    "words between wide spaces": "\u212a_auth\u2003",
    "words between spaces": " auth",
    "far values": "pwd=" + " " * 16,
    "farther values": "pwd=" + " " * 72,
    "brackets, and quotes on the next line": "pwd=(\n'",
    "URLs": "http://u:p@h ",
    "URLs of tokens": "https://abcdefghijklmnopqr@h/",
    "begins of URLs": "a://a:",
    "signs of URLs": "://",
    "begins of JWTs": "-eyJ",
    "halves of JWTs": "-eyJaaaaaaaa.",
    "JWTs": "eyJaaaaaaaa.aaaaaaaa.a ",
    "ghp_": "-ghp_",
    "sk- too short": " sk-aaaaaaaaaaaaaaa",
    "xoxb-": "xoxb-aaaaaaaaaa ",
    "bearer": "bearer aaaaaa ",
    "basic": "basic aaaaaa ",
    "negotiate": "negotiate aaaa1a ",
    "options, open quotes": "--pwd \"--pwd \x85'",
    "options without values": "--pwd a --pwd --pwd a ",
    "sas and a wide space": "sas\xa0",
    "app and ap": "appap",
    "open brackets": "pwd=[(",
    "brackets on their lines": "pwd=(a\n",
    "cookies": "cookie:a;",
    "authorization": "authorization:a ",
    "tokens of accounts": "refreshtoken",
    "tokens of none": "xtoken",
    "tokens, options and digits": "token --pwd 6",
    "JSON in JSON": 'pwd=\\"a\\" ',
    "signatures": "-signature",
    "JSON": '{"api_key": "zzz", "a":1}, ',
    "a dict": "{'password': 'it\\'s', 'b': 2}, ",
}
# Has something of every rule, so that none is passed over.
ALL_RULES = "key pwd=a -- :// @ eyJ basic "


def filled(piece: str, size: int) -> str:
    """Return so many characters of a piece that is repeated."""
    return (ALL_RULES + piece * (size // len(piece) + 1))[:size]


def halves() -> dict[str, Callable[[str, str], str]]:
    """Return what redacts, by the name of the half."""
    found: dict[str, Callable[[str, str], str]] = {}
    if _native.speedups is not None:
        found["compiled"] = _native.speedups.without_secrets
    return {**found, "Python": _secret_spans.without_secrets}


def best_us(
    redact: Callable[[str, str], str],
    texts: dict[str, str],
    rounds: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, float]:
    """Return what each text costs, the best of some rounds in which they take turns."""
    found = dict.fromkeys(texts, float("inf"))
    for _ in range(rounds):
        for name, text in texts.items():
            began = clock()
            redact(text, REDACTED)
            found[name] = min(found[name], (clock() - began) / 1e3)
    return found


def ways_us(rounds: int) -> dict[str, float]:
    """Return what it costs the training thread to say 4 KiB or more, with what is done besides to take it."""
    text = filled(PIECES["values"], SIZE)
    prose = (PIECES["prose with 'key' and 'token'"] * SIZE)[:SIZE]
    failure = f"{prose * 6}"
    knowing = Redactor(environ={f"KEY_{number}_TOKEN": f"secret-{number}-of-ten" for number in range(10)})

    def fail() -> None:
        with contextlib.suppress(KeyError), tracker.enter_phase("fails"):
            raise KeyError(failure)

    with contextlib.redirect_stdout(io.StringIO()), PhaseTracker(bridge=None, capture=True) as tracker:
        phase = tracker.enter_phase("outer")
        ways: dict[str, Callable[[], object]] = {
            "enter and exit with 4 KiB of prose": lambda: tracker.enter_phase("step", {"text": prose}).close(),
            "enter and exit with 4 KiB of credentials": lambda: tracker.enter_phase("step", {"text": text}).close(),
            "4 KiB of prose, and ten known secrets to look for": lambda: knowing.text(prose),
            "enter and exit with no attributes": lambda: tracker.enter_phase("step").close(),
            "a phase that fails with 24 KiB": fail,
            "print of 4 KiB": lambda: print(prose),
        }
        found = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter_ns()
                way()
                found[name] = min(found[name], (time.perf_counter_ns() - began) / 1e3)
        phase.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="show what each text costs")
    options = parser.parse_args()
    failed = False
    for half, redact in halves().items():
        budget = BUDGETS_US[half]
        found = best_us(redact, {name: filled(piece, SIZE) for name, piece in PIECES.items()}, options.rounds)
        dearest = sorted(found, key=found.__getitem__, reverse=True)
        print(f"{half}, {len(found)} texts of 4 KiB, best of {options.rounds}; the budget is {budget:.0f} us")
        for name in dearest if options.all else [*dearest[:5], "plain prose", "prose with 'key' and 'token'"]:
            print(f"  {name}: {found[name]:.1f} us")
        failed |= found[dearest[0]] > budget
        for size in LARGER:
            texts = {name: filled(PIECES[name], size) for name in found}
            larger = best_us(redact, texts, LARGE_ROUNDS, time.thread_time_ns)
            name = max(larger, key=lambda name: larger[name] / found[name])
            per = larger[name] / found[name] / (size / SIZE)
            print(f"  {size // KIB} KiB: at most {max(larger.values()):,.0f} us; per KiB at most {per:.2f} x ({name})")
            failed |= max(larger.values()) > 2 * budget * size / SIZE
    print("the way around it, in the half that is loaded")
    for name, cost_us in ways_us(options.rounds).items():
        print(f"  {name}: {cost_us:.1f} us")
    if failed:
        sys.exit("a budget is exceeded")


if __name__ == "__main__":
    main()
