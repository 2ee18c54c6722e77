"""Takes secrets out of text before it is stored or sent: captured lines, attributes, error messages and tracebacks.

It looks for the values of environment variables whose names look like credentials, for `key=value` and `"key": "value"`
with such keys, for bearer and basic tokens, for passwords in URLs, for tokens of well-known shapes, for private keys,
and for what the user gives. It is a net, not a proof: a secret that looks like any other word passes.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REDACTED: Final = "[redacted]"
SHORTEST_VALUE: Final = 8
"""Values of environment variables shorter than this are left: they would be found in innocent words."""
REACH: Final = 4_096
"""How many characters beyond those that are kept are looked at: a secret that is cut in two is still seen as one."""
_DEEPEST: Final = 8
_LONGEST_INNOCENT: Final = 128
_MOST_INNOCENT: Final = 4_096
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"

# Most tokens of a training run are pieces of text: `eos_token`, `time_to_first_token`, `token_type`.
_OF_TEXT: Final = (
    "pad eos bos unk sep cls mask stop start end special image audio video text word first next last prev previous "
    "current new each every per one top best max min num input output prompt target source predicted generated sampled "
    "decoded draft vocab"
)
_TOKEN: Final = r"(?<![a-z])token(?![a-z0-9]|[_\-.](?!(?:value|string|secret|key|hash)(?![a-z]))[a-z0-9])" + "".join(
    rf"(?<!(?<![a-z]){word}[_\-. ]token)" for word in _OF_TEXT.split()
)
# `pass` and `key` alone are no credentials: "3 passed", "keyboard".
_WORDS: Final = (
    r"(?:api|access|account|app|auth|client|private|secret|service|session|signing|storage|encryption)"
    r"[_\-. ]?(?:key|token|secret|pwd|password)s?(?![a-z])"
    rf"|passw(?:or)?d|passphrase|(?<![a-z])pwd(?![a-z])|secret|credential|{_TOKEN}"
    r"|(?<![a-z])auth(?:orization)?(?![a-z])|(?<![a-z])(?:set-)?cookie(?![a-z])|(?<![a-z])sas(?![a-z])|connection_?string"
)
_CREDENTIAL_NAME: Final = re.compile(_WORDS, re.IGNORECASE)
# In whatever has a secret that the patterns know. Of text in lower case, since to look without regard to case takes ten
# times as long.
_HINTS: Final = re.compile(
    r"key|token|secret|p(?:wd|ass[wp]|ypi-)|c(?:redential|ookie|onnection)|auth|b(?:earer|asic|egin)|digest|negotiate|sas|://"
    r"|g(?:h[pousr]_|ithub_|lpat-)|hf_|sk-|xox|npm_|dop_v1_|eyj|a(?:kia|sia|iza)"
)

# https://user:password@host
_URL: Final = re.compile(
    r"(?P<keep>\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@'\"]{0,200}:)(?P<secret>[^\s/@'\"]{1,400})(?=@)", re.IGNORECASE
)
_PATTERNS: Final = (
    # Whole lines that are part of a private key, and its begin and end.
    re.compile(r"(?P<keep>-----BEGIN [A-Z ]*PRIVATE KEY-----)(?P<secret>[\s\S]*?)(?=-----END|\Z)"),
    # The scheme and what follows it: `Authorization: Bearer abc`, `authorization="Basic abc"`.
    re.compile(r"(?P<keep>\bbearer\s+)(?P<secret>[A-Za-z0-9._~+/=:-]{6,})", re.IGNORECASE),
    # "Basic training" is none.
    re.compile(
        r"(?P<keep>\b(?:basic|digest|negotiate)\s+)"
        r"(?P<secret>(?=[A-Z._~:-]{0,400}(?:[0-9+/=]|(?-i:[a-z][A-Z])))[A-Z0-9._~+/=:-]{6,})",
        re.IGNORECASE,
    ),
    _URL,
    # https://token@host
    re.compile(r"(?P<keep>\bhttps?://)(?P<secret>[^\s:/@'\"]{16,400})(?=@)", re.IGNORECASE),
    # password=..., --api-key ..., "token": "..."
    re.compile(
        rf"""(?P<keep>(?:{_WORDS})[\w-]{{0,40}}["']?\s{{0,8}}(?:=>|:=|[=:])\s{{0,8}})"""
        r"""(?P<secret>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|b'[^']*'|(?!(?:bearer|basic|digest|negotiate)\s|\[redacted\])[^\s,;&"')\]}]+)""",
        re.IGNORECASE,
    ),
    # The bounds on repetition keep the time linear, whatever a line has in it.
    re.compile(
        rf"""(?P<keep>--[\w-]{{0,40}}(?:{_WORDS})[\w-]{{0,40}}\s{{1,8}})(?P<secret>"[^"]*"|'[^']*'|[^\s"'-][^\s"']*)""",
        re.IGNORECASE,
    ),
    # Tokens that say by their shape what they are.
    re.compile(
        r"(?P<keep>\b)(?P<secret>gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}"
        r"|sk-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{20,}"
        r"|pypi-[\w-]{20,}|dop_v1_[a-f0-9]{20,}|eyJ[\w-]{8,2000}\.[\w-]{8,}\.[\w-]*)"
    ),
)
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,12}(?:\.[0-9]{0,12})?(?:e[+-]?[0-9]{1,3})?%?")
_NOT_SECRET: Final = frozenset({"", '""', "''", "none", "null", "true", "false", "...", "***", REDACTED.lower()})


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

    __slots__ = ("_literals", "_patterns", "innocent")

    def __init__(
        self, *, environ: Mapping[str, str] | None = None, patterns: Iterable[str | re.Pattern[str]] = ()
    ) -> None:
        """Compile all of it."""
        self._patterns = tuple(
            _compiled(pattern) for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
        )
        values = sorted(_credentials(environ or {}), key=len, reverse=True)
        self._literals = re.compile("|".join(map(re.escape, values))) if values else None
        self.innocent: set[str] = set()

    def text(self, text: str) -> str:
        """Return `text` without its secrets."""
        if self._literals is not None:
            text = self._literals.sub(REDACTED, text)
        for pattern in self._patterns:
            text = pattern.sub(_user_part, text)
        if _HINTS.search(text.lower()) is None:
            return text
        for pattern in _PATTERNS:
            text = pattern.sub(_known_part, text)
        return text

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

    def is_innocent(self, text: str) -> bool:
        """Whether a text has no secret; remembered of short ones, up to a bound."""
        if self.text(text) != text:
            return False
        self._remember(text)
        return True

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
            return hidden(value, depth)
        return self.value(value, depth)

    def mapping(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes without their secrets; those whose key looks like a credential lose the whole value."""
        return {key: self.item(key, value) for key, value in values.items()}


def hidden(value: Any, depth: int = 0) -> Any:
    """Return what may be told of the value of a credential: no text in it, also deep in lists and mappings."""
    if isinstance(value, (str, bytes)):
        return REDACTED if len(value) and str(value).lower() not in _NOT_SECRET else value
    if isinstance(value, dict) and depth < _DEEPEST:
        return {key: hidden(each, depth + 1) for key, each in value.items()}
    if type(value) in (list, tuple) and depth < _DEEPEST:
        return type(value)(hidden(each, depth + 1) for each in value)
    return value


@functools.lru_cache(maxsize=_MOST_INNOCENT)
def is_credential_name(name: str) -> bool:
    """Whether a variable, key or parameter of this name would hold a secret."""
    return _CREDENTIAL_NAME.search(_with_words_parted(name)) is not None


def _with_words_parted(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def _credentials(environ: Mapping[str, str]) -> set[str]:
    found = set()
    for name, value in environ.items():
        value = value.strip()  # noqa: PLW2901 - as it is printed
        if (
            len(value) >= SHORTEST_VALUE
            and not _is_path(value)
            and (is_credential_name(name) or name.upper().endswith("_KEY"))
        ):
            found.add(value)
            # It is captured line by line.
            found.update(line for each in value.split("\n") if len(line := each.strip()) >= SHORTEST_VALUE)
        found.update(each["secret"] for each in _URL.finditer(value) if len(each["secret"]) >= SHORTEST_VALUE)
    return found


def _is_path(value: str) -> bool:
    """Whether a value is where a secret lies, and not the secret: SSH_AUTH_SOCK, TOKEN_FILE."""
    return value.startswith(("/", "./", "~/", "\\")) and "\n" not in value


def _known_part(found: re.Match[str]) -> str:
    secret = found["secret"].lower().strip("\"'")
    # "token: 50256" is a tokenizer's.
    if secret in _NOT_SECRET or (_NUMBER.fullmatch(secret) and "token" in found["keep"].lower()):
        return found[0]
    quote = found["secret"][0] if found["secret"][0] in "\"'" else ""
    return f"{found['keep']}{quote}{REDACTED}{quote}"


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
