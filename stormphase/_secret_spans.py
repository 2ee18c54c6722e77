"""Finds where in a text something stands that looks like a credential: the library's own patterns.

Each rule is one regular expression that is linear by construction, since it runs on the training thread, over whatever
a program has to say: a repetition is over one class of characters, what follows it is outside of that class, and what
was looked at in vain is consumed or short. `_c/redaction.h` does the same in one pass; this is the definition.

Case is that of ASCII. The rules look at the same text, and what they find may overlap.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import TypeAlias

Spans: TypeAlias = "list[tuple[int, int]]"

# In whatever has a secret that the rules know. Of text in lower case, since to look without regard to case takes ten
# times as long.
_HINTS: Final = re.compile(
    r"key|token|secret|p(?:wd|ass[wp]|ypi-)|c(?:redential|ookie|onnection)|auth|b(?:earer|asic)|digest|negotiate|sas|://"
    r"|g(?:h[pousr]_|ithub_|lpat-|sk_)|hf_|sk[-_]|x(?:ox|app-|ai-)|n(?:pm_|vapi-)|d(?:op_v1_|api)|eyj"
    r"|pass(?![a-z])|jwt|creds"
    r"|a(?:kia|sia|iza)|ya29\.|hvs\.|r(?:8|k)_|\?sig=|&sig=|-signature="
)

# Most tokens of a training run are pieces of text: `eos_token`, `time_to_first_token`, `token_type`.
_OF_TEXT: Final = (
    "pad eos bos unk sep cls mask stop start end special image audio video text word first next last prev previous "
    "current new each every per one top best max min num input output prompt target source predicted generated sampled "
    "decoded draft vocab n total"
)
_OF_ACCOUNT: Final = "hf bot jwt csrf xsrf bearer github gitlab refresh"  # refreshToken, in lower case
_NO_TEXTS: Final = "".join(
    rf"(?<!(?<![a-z])(?:{'|'.join(word for word in _OF_TEXT.split() if len(word) == length)})[_\-. ]token)"
    for length in sorted({*map(len, _OF_TEXT.split())})
)
_OF_ACCOUNTS: Final = "|".join(rf"(?<={word}token)" for word in _OF_ACCOUNT.split())
_TOKEN: Final = (
    rf"token(?:(?<![a-z]token)|{_OF_ACCOUNTS})"
    r"(?![a-z0-9]|[_\-.](?!(?:value|string|secret|key|hash)(?![a-z]))[a-z0-9])"
    rf"(?:(?<![_\-. ]token)|{_NO_TEXTS})"
)
_LAST_WORD: Final = r"(?:key|token|secret|pwd|password)s?(?![a-z])"
_AND_KEY: Final = rf"[_\-. ]?{_LAST_WORD}"
# `pass` and `key` alone are no credentials: "3 passed", "keyboard". As a tree, which is searched faster.
_WORDS: Final = (
    rf"a(?:(?:pi|ccess|ccount|pp|uth){_AND_KEY}|uth(?<![a-z]auth)(?:orization)?(?![a-z]))"
    rf"|c(?:lient{_AND_KEY}|redential|ookie(?<![a-z]cookie)(?![a-z])|onnection_?string)"
    rf"|encryption{_AND_KEY}"
    rf"|p(?:rivate{_AND_KEY}|ass(?:w(?:or)?d(?!less)|phrase)|wd(?<![a-z]pwd)(?![a-z]))"
    rf"|s(?:ecret(?!ar[iy])|as(?<![a-z]sas)(?![a-z])|ig(?:(?<=[?&]sig)|nature(?<=-signature))(?==)|(?:ervice|ession|igning|torage){_AND_KEY})"
    rf"|{_TOKEN}"
)
_CREDENTIAL_NAME: Final = re.compile(_WORDS)

# `key` and `pass` are credentials by what stands before them: `ssh_key`, `DB_PASS`, and not `loss_key`, `first_pass`.
# Of the many words that may, one at most is looked at: the text is read backwards, from `yek` on.
_KEYS_OF: Final = (
    "ssh gpg pgp rsa dsa ecdsa aes hmac tls ssl jwt license licence master subscription activation deploy priv "
    "encrypt decrypt decryption webhook admin consumer vault unseal wallet security aws azure gcp google openai "
    "anthropic cohere mistral groq wandb github gitlab stripe sendgrid twilio mailgun slack datadog sentry comet "
    "neptune kaggle ngc runpod pinecone cloudflare"
)
_PASSES_OF: Final = (
    "db database sql mysql mssql pgsql pg postgres postgresql mongo mongodb redis rabbitmq amqp mqtt oracle "
    "elastic kafka smtp mail email imap ftp sftp ssh ldap vpn wifi http https proxy user admin root sudo login "
    "account auth registry docker jenkins git key keystore truststore cert ssl tls vault"
)


def _backwards(words: str) -> str:
    return "|".join(sorted(word[::-1] for word in words.split()))


# The word itself, by which is looked whether it is there at all, and the pattern of the text that is turned round.
_LAST_WORDS: Final = tuple(
    (word, re.compile(pattern))
    for word, pattern in (
        ("key", rf"yek(?:(?<![a-z]yek)|(?<=syek)(?<![a-z]syek))[_\-. ]?(?:{_backwards(_KEYS_OF)})(?![a-z])"),
        ("pass", rf"ssap(?<![a-z]ssap)[_\-.]?(?:{_backwards(_PASSES_OF)})(?![a-z])"),
        ("creds", r"sderc(?<![a-z]sderc)(?![a-z])"),
        ("jwt", r"twj(?<![\w-]twj)(?![a-z0-9])"),
    )
)

# The whole name that such a word stands in (`my_api_key_2`, "api key"), at once: no part of it is looked at again.
_REST: Final = rf"(?:(?=[\w-]|[. ][ktsp])(?:(?=([\w-]+))\1)?(?:(?=((?:[. ]{_LAST_WORD}[\w-]*)+))\2)?)?"
_NAME: Final = rf"(?:{_WORDS}){_REST}"
_LONGER_NAME: Final = r"(?(1)|(?(2)|(?!)))"
_IN_QUOTES: Final = r""""([^"\\]*(?:\\[\s\S][^"\\]*)*)(?=")|'([^'\\]*(?:\\[\s\S][^'\\]*)*)(?=')"""
# password=..., "token": "...", b'...', what has no end quote, and \"token\": \"...\" in a string within a string.
_BARE: Final = (
    r"""(?!b(?:earer|asic)\s|digest\s|negotiate\s|\[redacted\]|[bfru]{1,2}["'])"""
    r"""([^\s,;&"')\]}]+)"""
)
_ASSIGNED: Final = (
    r"""(?:["']\]?|\\\\{0,7}["']\]?|)\s{0,8}(?:=(?:>|={0,2}(?![=>]))|:(?:=|(?!=)))\s{0,8}"""
    # In quotes it may stand far in, on the next line.
    rf"""(?:(?:(?<=\s\s\s\s\s\s\s\s)|\\)\s{{1,64}}(?=[bfru]{{0,2}}["']))?+"""
    rf"""(?:(?=[bfru"'])(?:[bfru]{{1,2}}(?=["']))?(?:{_IN_QUOTES}|["']{_BARE})|\\\\{{0,7}}["']([^"'\\]*)|{_BARE})"""
)
# What follows an option of a command line: `--api-key ...`, or in a list of arguments. Not consumed: it may be a name.
_FOLLOWS: Final = rf"""(?=(?:["'],?|)\s{{1,8}}(?:{_IN_QUOTES}|([^\s"'-][^\s"']*)))"""
_LONGEST_FIRST: Final = 16  # and more than any word that `key` and `pass` may have before them, with what parts them
_FIRST_VALUE: Final = 3
_MANY: Final = 64
_SPARSE: Final = 18
_BARE_VALUE: Final = 7
_FIRST_OF_OPTION: Final = 8
_NAMED: Final = re.compile(rf"{_NAME}(?:{_ASSIGNED}|{_LONGER_NAME})")
_NAMED_OR_OPTION: Final = re.compile(rf"{_NAME}(?:{_ASSIGNED}|{_FOLLOWS}|{_LONGER_NAME})")
_REST_NAMED: Final = re.compile(rf"{_REST}(?:{_ASSIGNED}|{_LONGER_NAME})")
_REST_NAMED_OR_OPTION: Final = re.compile(rf"{_REST}(?:{_ASSIGNED}|{_FOLLOWS}|{_LONGER_NAME})")
# A value without quotes goes on: in brackets, to where those end, but for the deepest, and on this line; in a header.
_MORE: Final = ("(", "[", "{", "cookie", "authorization")
# On this line, or in quotes on the next one.
_NO_BRACKET: Final = r"""(?:[^()\[\]{}\n]+|\n(?=[ \t]{0,64}["']))*"""
_IN_BRACKETS: Final = re.compile(
    rf"[^(\[{{]*[(\[{{]{_NO_BRACKET}(?:[(\[{{]{_NO_BRACKET}[)\]}}]?{_NO_BRACKET})*[)\]}}]?"
)
_MORE_COOKIES: Final = re.compile(r"""(?:;[^\n"']*)?""")
_AFTER_SCHEME: Final = re.compile(r"""(?: {1,8}[^\s,;&"')\]}]+)?""")
_OPTION: Final = re.compile(r"(--(?<![\w-]--)[\w-]*)")

# `Authorization: Bearer abc`. "Basic training" is none: the rest has a digit, a sign, or a capital in its midst.
_SCHEME: Final = re.compile(
    r"(?:b(?:earer(?<!\wbearer)|asic(?<!\wbasic))|digest(?<!\wdigest)|negotiate(?<!\wnegotiate))"
    r"\s+(?=[a-z0-9._~+/=:-]{6})(?:([a-z._~:-]*[0-9+/=][a-z0-9._~+/=:-]*)|([a-z._~:-]+))"
)
_LETTERS_ONLY: Final = 2
_CAPITAL: Final = re.compile("[a-z][A-Z]")

# https://user:password@host, https://token@host
_URL: Final = re.compile(r"""://(?<=[a-z0-9+.\-]://)([^\s:/@'"]*)(?::([^\s/@'"]+))?@""")
_SHORTEST_IN_URL: Final = 16

# Each way begins with a letter, so that `re` passes over what begins with no such letter.
# Tokens that say by their shape what they are. A JWT's first part is consumed also where no second one follows.
_SHAPE: Final = re.compile(
    r"g(?:h[pousr]_(?<!\wgh._)[A-Za-z0-9]{20,}|ithub_pat_(?<!\wgithub_pat_)\w{20,}|lpat-(?<!\wglpat-)[\w-]{16,}"
    r"|sk_(?<!\wgsk_)[A-Za-z0-9]{20,})|hf_(?<!\whf_)[A-Za-z0-9]{16,}"
    r"|sk(?:-(?<!\wsk-)([A-Za-z0-9_-]{16,})|_(?:live|test)_(?<!\wsk_...._)[A-Za-z0-9]{16,})"
    r"|x(?:ox[abprs]-(?<!\wxox.-)[A-Za-z0-9-]{10,}|app-(?<!\wxapp-)[A-Za-z0-9-]{16,}|ai-(?<!\wxai-)[A-Za-z0-9]{20,})"
    r"|A(?:(?:KI|SI)A(?<!\wA.IA)[A-Z0-9]{16}|Iza(?<!\wAIza)[\w-]{30,})"
    r"|n(?:pm_(?<!\wnpm_)[A-Za-z0-9]{20,}|vapi-(?<!\wnvapi-)[\w-]{20,})"
    r"|pypi-(?<!\wpypi-)[\w-]{20,}|d(?:op_v1_(?<!\wdop_v1_)[a-f0-9]{20,}|api(?<!\wdapi)[a-f0-9]{32,})"
    r"|r(?:8_(?<!\wr8_)[A-Za-z0-9]{20,}|k_(?:live|test)_(?<!\wrk_...._)[A-Za-z0-9]{16,})"
    r"|ya29\.(?<!\wya29.)[\w-]{20,}|hvs\.(?<!\whvs.)[\w-]{20,}"
    r"|eyJ(?<!\weyJ)(?=([\w-]{8,}))\2(\.[\w-]{8,}\.[\w-]*)?"
)

_OF_WORDS, _HALF_OF_JWT = 1, 2
_JOINED_WORDS: Final = re.compile("[a-z]*[_-][a-z_-]*")  # sk-learn-compatible

KEY_EDGES: Final = ("PRIVATE KEY-----", "PRIVATE KEY BLOCK-----")
"""What the first and the last line of a private key end with: OpenSSL's and OpenSSH's, and PGP's."""
_KEY_BEGIN: Final = re.compile("-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----")
_KEY_END: Final = "-----END"

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,12}(?:\.[0-9]{0,12})?(?:e[+-]?[0-9]{1,3})?%?")
_BEGINS_NUMBER: Final = frozenset("+-0123456789")
NOT_SECRET: Final = frozenset({"", "none", "null", "true", "false", "...", "***", "[redacted]"})
"""What stands where a secret could, and is none; in lower case."""


def secret_spans(text: str) -> Spans | None:
    """Return where secrets begin and end, in order and apart from each other; None where there are none.

    The time grows with the length of the text, whatever is in it.
    """
    low = folded(text)
    spans = _private_keys(text) if "PRIVATE KEY" in text else []
    if _HINTS.search(low) is not None:
        for more in (
            _named(low),
            _by_last_word(low),
            _by_scheme(text, low),
            urls_secrets(low),
            _by_shape(text),
        ):
            if more:
                spans = united(spans + more) if spans else more
    return spans or None


def is_credential_word(name: str) -> bool:
    """Whether a name, of which `folded` has made lower case, has a word for credentials in it."""
    return _CREDENTIAL_NAME.search(name) is not None or bool(_last_words(name))


def folded(text: str) -> str:
    """Return a text in lower case, character by character."""
    low = text.lower()
    # Of one character alone lower case is longer.
    return low if len(low) == len(text) else text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()


def _named(low: str) -> Spans:
    """Return where the values stand of what has a credential's name: after `=` or `:`, or as an option in a command."""
    options = _options(low)
    pattern = _NAMED if options is None else _NAMED_OR_OPTION
    return _values(low, pattern.finditer(low), options or ())


def _by_last_word(low: str) -> Spans:
    """Return the same of names whose last word is one only beside another: `ssh_key`, `DB_PASS`."""
    ends = _last_words(low)
    if not ends:
        return []
    options = _options(low)
    pattern = _REST_NAMED if options is None else _REST_NAMED_OR_OPTION
    return _values(low, _after(low, ends, pattern), options or ())


def _last_words(low: str) -> list[int]:
    """Return where such words end, in order."""
    ends: list[int] = []
    turned = ""
    for word, pattern in _LAST_WORDS:
        last = low.rfind(word)
        if last < 0:
            continue
        turned = turned or low[::-1]
        size = len(low)
        # To where the first one ends, and what follows a word says something of it as well.
        until = size - low.find(word) + _LONGEST_FIRST
        ends += [size - found.start() for found in pattern.finditer(turned, size - last - len(word), until)]
    ends.sort()
    return ends


def _after(low: str, ends: list[int], pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Yield what follows names that end there, but for those that stand in the value of another."""
    until = 0
    for end in ends:
        if end >= until:
            found = pattern.match(low, end)
            if found is not None:
                if _FIRST_VALUE <= found.lastindex < _FIRST_OF_OPTION:  # type: ignore[operator]  # has one, as above
                    until = found.end()
                yield found


def _options(low: str) -> set[int] | None:
    """Return where the options of command lines end; None where none has a credential's name."""
    if "--" not in low:
        return None
    pieces = _OPTION.split(low)  # What is between them and, each second one, they themselves.
    if not is_credential_word("\n".join(pieces[1::2])):
        return None
    return {*itertools.islice(itertools.accumulate(map(len, pieces)), 1, None, 2)}


def _values(low: str, matches: Iterator[re.Match[str]], options: Collection[int]) -> Spans:
    has_tokens = "token" in low
    may_go_on = any(map(low.__contains__, _MORE))
    most = max(_MANY, len(low) // _SPARSE)
    spans: Spans = []
    count = until = 0
    last_end = -1
    for found in matches:
        group: int = found.lastindex  # type: ignore[assignment]  # what matches has at least a longer name
        if group < _FIRST_VALUE or (group >= _FIRST_OF_OPTION and found.end() not in options):
            continue
        secret = found[group]
        if secret in NOT_SECRET or (has_tokens and secret[0] in _BEGINS_NUMBER and _is_of_tokenizer(found[0], secret)):
            continue
        start, end = found.span(group)
        if may_go_on and group == _BARE_VALUE and start >= until:
            if "(" in secret or "[" in secret or "{" in secret:
                end = max(end, _IN_BRACKETS.match(low, start).end())  # type: ignore[union-attr]  # one is there
            else:
                end = _end_of_header(low, found[0], end)
            until = end
        count += 1
        if count > most:  # It is made of nothing else, and costs as much as it can.
            end = len(low)
        if start > last_end:
            spans.append((start, end))
            last_end = end
        elif end > last_end:  # What an option is given may have a name in it.
            spans[-1] = spans[-1][0], end
            last_end = end
        if count > most:
            break
    return spans


def _end_of_header(low: str, found: str, end: int) -> int:
    """Return where a header's value ends, of which `found` is the begin; `end` if it is none."""
    if "cookie" in found:
        return _MORE_COOKIES.match(low, end).end()  # type: ignore[union-attr]  # it matches the empty text, too
    if "authorization" in found:
        return _AFTER_SCHEME.match(low, end).end()  # type: ignore[union-attr]  # as that does
    return end


def _is_of_tokenizer(found: str, value: str) -> bool:
    """Whether a value is a number of tokens, or of one: "token: 50256"."""
    return "token" in found and ((len(value) == 1 and value.isdecimal()) or _NUMBER.fullmatch(value) is not None)


def _by_scheme(text: str, low: str) -> Spans:
    if "bearer" not in low and "basic" not in low and "digest" not in low and "negotiate" not in low:
        return []
    has_capitals = low != text
    spans = []
    for found in _SCHEME.finditer(low):
        group: int = found.lastindex  # type: ignore[assignment]  # one of the two
        start, end = found.span(group)
        if (
            group != _LETTERS_ONLY
            or (has_capitals and _CAPITAL.search(text, start, end))
            or low.startswith("bearer", found.start())
        ):
            spans.append((start, end))
    return spans


def _by_shape(text: str) -> Spans:
    return [
        found.span()
        for found in _SHAPE.finditer(text)
        if found.lastindex != _HALF_OF_JWT
        and (found.lastindex != _OF_WORDS or _JOINED_WORDS.fullmatch(text, *found.span(_OF_WORDS)) is None)
    ]


def urls_secrets(low: str) -> Spans:
    """Return where the passwords and tokens of URLs stand in a text in lower case."""
    spans: Spans = []
    if "://" not in low or "@" not in low:
        return spans
    for found in _URL.finditer(low):
        start, end = found.span(2)
        if start < 0:
            start, end = found.span(1)
            if end - start < _SHORTEST_IN_URL or not low.endswith(("http", "https"), 0, found.start()):
                continue
        if low[start:end] not in NOT_SECRET:
            spans.append((start, end))
    return spans


def _private_keys(text: str) -> Spans:
    spans = []
    begin = _KEY_BEGIN.search(text)
    while begin is not None:
        start = begin.end()
        end = text.find(_KEY_END, start)
        if end < 0:
            end = len(text)
        if text[start:end].lower() not in NOT_SECRET:
            spans.append((start, end))
        begin = _KEY_BEGIN.search(text, end)
    return spans


def united(spans: Spans) -> Spans:
    """Return spans, of which there is at least one, in order and apart from each other."""
    spans.sort()
    apart: Spans = []
    last_start, last_end = spans[0]
    for start, end in spans:
        if start > last_end:
            apart.append((last_start, last_end))
            last_start, last_end = start, end
        elif end > last_end:
            last_end = end
    apart.append((last_start, last_end))
    return apart


def with_marker(text: str, spans: Spans, marker: str) -> str:
    """Return a text with a marker in the place of each of some spans, which are in order and apart."""
    at = 0
    pieces = []
    for start, end in spans:
        pieces.append(text[at:start])
        at = end
    pieces.append(text[at:])
    return marker.join(pieces)


def without_secrets(text: str, marker: str) -> str:
    """Return a text with a marker, in ASCII, in the place of each secret; `text` itself where there is none."""
    spans = secret_spans(text)
    return text if spans is None else with_marker(text, spans, marker)


replace_secrets: Callable[[str, str], str] = without_secrets
"""What is used: the compiled one, where there is one."""
