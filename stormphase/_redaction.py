"""Takes secrets out of text before it is stored or sent: captured lines, attributes, error messages and tracebacks.

It looks for the values of environment variables whose names look like credentials, for `key=value` and `"key": "value"`
with such keys, for bearer and basic tokens, for passwords in URLs, for tokens of well-known shapes, for private keys,
and for what the user gives. It is a net, not a proof: a secret that looks like any other word passes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase import _secret_spans
from stormphase._clock import SystemClock
from stormphase._secret_spans import NOT_SECRET, folded, is_credential_word, united, urls_secrets
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REDACTED: Final = "[redacted]"
SHORTEST_VALUE: Final = 8
"""Values of environment variables shorter than this are left: they would be found in innocent words."""
REACH: Final = 4_096
"""How many characters beyond those that are kept are looked at: a secret that is cut in two is still seen as one."""
_DEEPEST: Final = 8
_LONGEST_INNOCENT: Final = 128
_MOST_INNOCENT: Final = 4_096
_WRITTEN_OTHERWISE: Final = frozenset("'\"\\")
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


class Redactor:
    """Replaces secrets by `[redacted]`. Thread-, signal- and fork-safe: nothing in it changes but what it has seen.

    Args:
        environ: whose credentials to look for; by default none. Only values of at least 8 characters are.
        patterns: regular expressions of the user's; all that matches goes, or only the group named `secret` if there is
            one.

    Attributes:
        innocent: short texts that were found to have no secret: most attributes say one of a few words.

    Raises:
        ConfigurationError: if a pattern is no regular expression, or matches the empty text.
    """

    __slots__ = ("_literals", "_patterns", "_spent", "innocent")

    def __init__(
        self, *, environ: Mapping[str, str] | None = None, patterns: Iterable[str | re.Pattern[str]] = ()
    ) -> None:
        """Compile all of it."""
        self._patterns = tuple(
            _compiled(pattern) for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
        )
        # Of two that begin alike the longer one first.
        self._literals = tuple(sorted(_credentials(environ or {}), key=len, reverse=True))
        self._spent: dict[int, list[int]] = {}  # By thread, so that no count is lost: texts, and ns.
        self.innocent: set[str] = set()

    def text(self, text: str) -> str:
        """Return `text` without its secrets."""
        if self._literals:
            text = self._without_literals(text)
        if self._patterns:
            text = self._without_own(text)
        return _secret_spans.replace_secrets(text, REDACTED)

    def _without_literals(self, text: str) -> str:
        spans = []
        for value in self._literals:
            start = text.find(value)
            while start >= 0:
                spans.append((start, start + len(value)))
                start = text.find(value, start + len(value))
        return _secret_spans.with_marker(text, united(spans), REDACTED) if spans else text

    def _without_own(self, text: str) -> str:
        """Look for what the user gave, and note what that costs: it is in nobody else's hands."""
        began_ns = SystemClock.monotonic_ns()
        try:
            for pattern in self._patterns:
                text = pattern.sub(_user_part, text)
        finally:
            thread = threading.get_ident()
            spent = self._spent.get(thread)
            if spent is None:
                spent = self._spent.setdefault(thread, [0, 0])
            spent[0] += 1
            spent[1] += SystemClock.monotonic_ns() - began_ns
        return text

    def stats(self) -> dict[str, int]:
        """Return at how many texts the user's own patterns looked and how long that took, in all threads, if any."""
        spent = list(self._spent.copy().values())
        counts = {"texts": sum(each[0] for each in spent), "own_patterns_ns": sum(each[1] for each in spent)}
        return counts if self._patterns else {}

    def begin(self, text: str, limit: int) -> str:
        """Return the begin of a text without its secrets, of which the first `limit` characters can be kept."""
        if type(text) is str and text in self.innocent:
            return text
        seen = str.__getitem__(text, slice(0, limit + REACH))
        clean = self.text(seen)
        if len(seen) < str.__len__(text):
            return clean + _ELLIPSIS
        if clean == text:
            self._remember(seen)
        return clean

    def cleaned(self, text: str) -> str:
        """Return `text` without its secrets; a short one that has none is remembered, up to a bound."""
        clean = self.text(text)
        if clean == text:
            self._remember(text)
        return clean

    def _remember(self, text: str) -> None:
        if len(text) <= _LONGEST_INNOCENT:
            if len(self.innocent) >= _MOST_INNOCENT:
                self.innocent.clear()  # What is said often is soon there again.
            self.innocent.add(text)

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return an attribute's value without secrets, also those deep in lists and mappings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict) and depth < _DEEPEST:
            return {
                self.text(key) if isinstance(key, str) else key: self.item(key, each, depth + 1)
                for key, each in value.items()
            }
        if type(value) in (list, tuple) and depth < _DEEPEST:
            return type(value)(self.value(each, depth + 1) for each in value)
        return value

    def item(self, key: Any, value: Any, depth: int = 0) -> Any:
        """Return a value without secrets, and nothing of it where its key says that it is one."""
        if isinstance(key, str) and is_credential_name(key):
            return hidden(value)
        return self.value(value, depth)

    def mapping(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes without their secrets; those whose key looks like a credential lose the whole value."""
        return {key: self.item(key, value) for key, value in values.items()}


def hidden(value: Any) -> Any:
    """Return what may be told of the value of a credential: that there is one, whatever its type."""
    if isinstance(value, str):
        return value if value.lower() in NOT_SECRET else REDACTED
    is_nothing = value is None or (isinstance(value, (bytes, dict, list, tuple)) and not value)
    return value if is_nothing else REDACTED


@functools.lru_cache(maxsize=_MOST_INNOCENT)
def is_credential_name(name: str) -> bool:
    """Whether a variable, key or parameter of this name would hold a secret."""
    return is_credential_word(folded(_with_words_parted(name)))


def _with_words_parted(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def _credentials(environ: Mapping[str, str]) -> set[str]:
    """Return the secrets that an environment has, in each form in which they may be told."""
    found = set()
    for name, value in environ.items():
        value = value.strip()  # noqa: PLW2901 - as it is printed
        if not _is_path(value) and (is_credential_name(name) or name.upper().endswith("_KEY")):
            # It is captured line by line.
            found.update([value, *map(str.strip, value.split("\n"))])
        found.update(value[start:end] for start, end in urls_secrets(folded(value)))
    return {form for value in found if len(value) >= SHORTEST_VALUE and value not in REDACTED for form in _forms(value)}


def _forms(value: str) -> Iterator[str]:
    """Yield a secret as it is, and as it is written by `repr`, `ascii` and JSON, also once more within another."""
    yield value
    if value.isprintable() and value.isascii() and not {*value} & _WRITTEN_OTHERWISE:
        return
    once = _written(value)
    for form in once:
        yield form
        yield from _written(form)


def _written(value: str) -> set[str]:
    # Which of its quotes `repr` escapes depends on all that stands beside the secret.
    parts = value.split("'")
    written = [[repr(part)[1:-1] for part in parts], [ascii(part)[1:-1] for part in parts]]
    with contextlib.suppress(UnicodeEncodeError):
        written.append([repr(part.encode())[2:-1] for part in parts])
    return {
        *(quote.join(each) for each in written for quote in ("'", r"\'")),
        *(json.dumps(value, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)),
    }


def _is_path(value: str) -> bool:
    """Whether a value is where a secret lies, and not the secret: SSH_AUTH_SOCK, TOKEN_FILE."""
    return value.startswith(("/", "./", "~/", "\\")) and "\n" not in value


def _user_part(found: re.Match[str]) -> str:
    if "secret" not in found.re.groupindex:
        return REDACTED
    start, end = found.span("secret")
    if start < 0:
        return found[0]
    return found[0][: start - found.start()] + REDACTED + found[0][end - found.start() :]


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        problem = "matches the empty text" if compiled.search("") is not None else None
    except (re.error, TypeError) as error:
        problem = f"is no regular expression: {error}"
    if problem is not None:
        raise ConfigurationError(
            f"The pattern {pattern!r:.60} {problem}.",
            setting="redact",
            fix=r'Write redact=(r"customer-\d+",), or with a group for the secret part: r"card (?P<secret>\d{16})".',
        )
    return compiled
