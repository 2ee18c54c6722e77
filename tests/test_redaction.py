"""Secrets are taken out of text before it is stored or sent."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import PhaseTracker
from stormphase._carried import Carried
from stormphase._redaction import REDACTED, Redactor, is_credential_name
from stormphase.capture import CaptureOptions
from stormphase.exceptions import ConfigurationError
from stormphase.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

SECRETS = {
    "token=abc123": "token=[redacted]",
    "Authorization: Bearer abcdefgh.xyz": "Authorization: Bearer [redacted]",
    "authorization='Basic dXNlcjpwYXNz'": "authorization='[redacted]'",
    "Negotiate YIIJvwYGKwYBBQUCoIIJ": "Negotiate [redacted]",
    "api_keys: abc": "api_keys: [redacted]",
    "https://bob:pw12@host/x": "https://bob:[redacted]@host/x",
    "postgresql+psycopg://u:p%40ss@db:5432/x": "postgresql+psycopg://u:[redacted]@db:5432/x",
    "git clone https://0123456789abcdef0123@host/x": "git clone https://[redacted]@host/x",
    '{"api_key": "zzz", "a":1}': '{"api_key": "[redacted]", "a":1}',
    "{'password': 'it\\'s', 'b': 2}": "{'password': '[redacted]', 'b': 2}",
    "--token hunter2 -v": "--token [redacted] -v",
    "my_token=hunter2, token_value: abc": "my_token=[redacted], token_value: [redacted]",
    "--password hunter2 -v": "--password [redacted] -v",
    "--api-key=hunter2 -v": "--api-key=[redacted] -v",
    "AWS_SECRET_ACCESS_KEY=abcd x": "AWS_SECRET_ACCESS_KEY=[redacted] x",
    "clientSecret: 'a b c', d=2": "clientSecret: '[redacted]', d=2",
    "key sk-abcdefghijklmnopqrstuv": "key [redacted]",
    "use ghp_0123456789abcdefghijABCDEFGHIJ now": "use [redacted] now",
    "hf_abcdefghijklmnopqrst": REDACTED,
    "AKIAABCDEFGHIJKLMNOP": REDACTED,
    "sk_live_0123456789abcdef, gsk_0123456789abcdefghij": "[redacted], [redacted]",
    "sk-proj-abcd_0123456789abcdef": REDACTED,
    "xapp-1-A012-0123456789 ya29.a0Af_0123456789abcdef": "[redacted] [redacted]",
    "nvapi-0123456789abcdefghij xai-0123456789abcdefghij": "[redacted] [redacted]",
    "dapi0123456789abcdef0123456789abcdef-2": "[redacted]-2",
    "hvs.0123456789abcdefghij r8_0123456789abcdefghij": "[redacted] [redacted]",
    "https://host/x?sv=1&sig=ab%3D&se=1 x?X-Amz-Signature=ab": (
        "https://host/x?sv=1&sig=[redacted]&se=1 x?X-Amz-Signature=[redacted]"
    ),
    "{'api_keys': ['ab', 'cd'], 'lr': 1}": "{'api_keys': [redacted], 'lr': 1}",
    "{'secret': {'user': {'pin': 4711}, 'b': 2}, 'lr': 1}": "{'secret': [redacted], 'lr': 1}",
    "auth=('bob', 'pw'), lr=1": "auth=[redacted], lr=1",
    "Config(api_key=SecretStr('ab cd'), lr=1)": "Config(api_key=[redacted], lr=1)",
    "passwords: [ab, cd\nlr: 1": "passwords: [redacted]\nlr: 1",
    r'"{\"api_key\": \"ab cd\", \"lr\": 1}"': r'"{\"api_key\": \"[redacted]\", \"lr\": 1}"',
    r'"{\\\"token\\\":\\\"ab\\\"}"': r'"{\\\"token\\\":\\\"[redacted]\\\"}"',
    "os.environ['HF_TOKEN'] = 'ab'": "os.environ['HF_TOKEN'] = '[redacted]'",
    "['run', '--token', 'ab', '--lr', '1']": "['run', '--token', '[redacted]', '--lr', '1']",
    "Authorization: token abcd x": "Authorization: [redacted] x",
    "Authorization: ApiKey abcd": "Authorization: [redacted]",
    "Cookie: a=b; sid=abcd; c=d\nHost: x": "Cookie: [redacted]\nHost: x",
    "refreshToken: abcd, csrftoken=abcd": "refreshToken: [redacted], csrftoken=[redacted]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl": REDACTED,
    "-----BEGIN RSA PRIVATE KEY-----\nabc\ndef\n-----END RSA PRIVATE KEY-----": (
        "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----"
    ),
}
INNOCENT = (
    "tokens=1234",
    "tokenizer: bert",
    "max_tokens=500 token_count=5 num_tokens: 7",
    "next_token: 50256",
    "time_to_first_token=0.31 s, loss per token: 1.5e-3, token_acc=97%, token=0.5",
    "pad_token='<pad>' eos_token: </s>, mask token: [MASK], next token: 'the', token_type: word",
    "password: None",
    "auth=False",
    "author: Bob, authority: x",
    "3 passed, 1 failed",
    "keyboard = 3, monkey=4",
    "loss: 0.3 step: 4",
    "https://host:8080/path?x=1",
    "user@example.org",
    "compass=1",
    "basic training, Digest mismatch",
    "task-1 on disk-2, part_of_it",
    "secretary: Jane, secretariat=1, passwordless: yes",
    "pip install sk-learn-compatible-estimators sk-image_processing_pipeline",
    "n_token: few, total token: many",
    "sig=0.05, signature: f(x), the design=x",
    "tensor([1, 2]) of keys=['a', 'b'], tokens: ['hello', 'world']",
)


@pytest.mark.parametrize(("text", "expected"), SECRETS.items())
def test_secrets_go(text: str, expected: str) -> None:
    """What looks like a credential is replaced, and what stands around it is left."""
    assert expected == Redactor().text(text)


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_stays(text: str) -> None:
    """A training log's tokens and authors are no secrets."""
    assert text == Redactor().text(text)


@pytest.mark.parametrize("text", SECRETS)
def test_redaction_is_stable(text: str) -> None:
    """Text that went through twice is as after once: sinks behind each other do no harm."""
    once = Redactor().text(text)
    assert once == Redactor().text(once)


def test_credentials_of_the_environment_go_wherever_they_stand() -> None:
    """The value of a variable with a credential's name is a secret, also without its name beside it."""
    environ = {
        "HF_TOKEN": "tops3cret/value",
        "DB_PASSWORD": "short",
        "HOME": "/home/bob",
        "SSH_AUTH_SOCK": "/run/agent",
    }
    redactor = Redactor(environ=environ)
    assert f"said {REDACTED}!" == redactor.text("said tops3cret/value!")
    assert "short /home/bob /run/agent" == redactor.text("short /home/bob /run/agent")


def test_a_variable_of_several_lines_goes_line_by_line() -> None:
    """As it is captured; and the password of a URL goes also where it stands alone."""
    environ = {"CREDENTIALS": '{"user": "bob",\n "blob": "4f9a02c7"}\n', "DATABASE_URL": "pg://bob:pass-of-db@host/db"}
    redactor = Redactor(environ=environ)
    assert REDACTED == redactor.text('"blob": "4f9a02c7"}')
    assert f"with {REDACTED}" == redactor.text("with pass-of-db")
    assert "bob host" == redactor.text("bob host")


def test_longer_values_go_first() -> None:
    """Of two secrets, one of which begins with the other, nothing is left."""
    redactor = Redactor(environ={"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-ijk"})
    assert REDACTED == redactor.text("abcdefgh-ijk")


def test_users_patterns_go() -> None:
    """A pattern takes all that it matches, or its group named secret."""
    redactor = Redactor(patterns=[r"customer-\d+", re.compile(r"card (?P<secret>\d+)")])
    assert f"{REDACTED} card {REDACTED}" == redactor.text("customer-17 card 4444")


def test_stats_tell_what_users_patterns_cost() -> None:
    """How many texts they looked at and how long that took, in all threads; nothing where there are none."""
    with PhaseTracker(bridge=None, redact=[r"customer-\d+"]) as tracker:
        thread = threading.Thread(target=lambda: tracker.enter_phase("a", {"who": "customer-17"}).close())
        thread.start()
        thread.join()
        with tracker.enter_phase("b", {"who": "customer-18", "what": 3}):
            pass
        spent = tracker.stats()["redaction"]
    assert {"texts", "own_patterns_ns"} == set(spent)
    assert spent["texts"] >= 2
    assert spent["own_patterns_ns"] > 0
    with PhaseTracker(bridge=None) as tracker:
        assert "redaction" not in tracker.stats()


WAYS: dict[str, Callable[[str], str]] = {
    "repr": repr,
    "ascii": ascii,
    "json": json.dumps,
    "json of letters": lambda secret: json.dumps(secret, ensure_ascii=False),
    "repr of bytes": lambda secret: repr(secret.encode()),
    "repr beside quotes": lambda secret: repr({"a": f"it's {secret}", "b": f'"{secret}"'}),
    "repr of repr": lambda secret: repr(repr(secret)),
    "json of repr": lambda secret: json.dumps({"error": repr(KeyError(secret))}),
    "repr of json": lambda secret: repr(json.dumps([secret])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "secret",
    [
        "pass'word-17",
        'pass"word-17',
        "pass'w\"ord-17",
        "back\\slash\\'17'",
        "zwei\nzeilen-17\n3",
        "gr\xfc\xdfe-\u2764-17",
        "t\tab\x00\x7f-17",
    ],
)
def test_known_secrets_go_in_the_forms_in_which_they_are_written(secret: str, way: str) -> None:
    """An error message shows a secret as `repr` or JSON do, with its quotes, backslashes and letters escaped."""
    redactor = Redactor(environ={"A_TOKEN": secret})
    text = f"no such thing: {WAYS[way](secret)}"
    clean = redactor.text(text)
    assert REDACTED in clean
    assert not [part for part in re.split(r"\W", secret) if len(part) > 3 and part in clean]


@pytest.mark.parametrize("pattern", ["(", "x*", 3])
def test_a_wrong_pattern_is_an_error_at_the_start(pattern: object) -> None:
    """What is no expression, or would match everywhere, is said before anything runs."""
    with pytest.raises(ConfigurationError, match="redact=") as caught:
        Redactor(patterns=[pattern])
    assert "redact" == caught.value.setting


def test_attributes_lose_secrets_by_key_and_by_value() -> None:
    """A credential's key takes the whole value, of whatever type, also deep inside, where keys lose theirs."""
    values = {
        "apiKey": "x",
        "tokens": 5,
        "note": ["token=1x", 2],
        "db": {"password": "p", "host": "h"},
        "url": "x://a:b@c",
        "secrets": ["a", {"b": ("c", 7)}, None],
        "orders": {"token=1x": 2},
    }
    expected = {
        "apiKey": REDACTED,
        "tokens": 5,
        "note": [f"token={REDACTED}", 2],
        "db": {"password": REDACTED, "host": "h"},
        "url": f"x://a:{REDACTED}@c",
        "secrets": REDACTED,
        "orders": {f"token={REDACTED}": REDACTED},
    }
    assert expected == Redactor().mapping(values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("OPENAI_API_KEY", True),
        ("accessToken", True),
        ("pwd", True),
        ("key", False),
        ("token_count", False),
        ("path", False),
    ],
)
def test_names_of_credentials(name: str, expected: bool) -> None:
    """A name says whether its value is a secret."""
    assert expected is is_credential_name(name)


@given(st.text())
def test_any_text_passes(text: str) -> None:
    """Nothing raises, whatever was printed."""
    assert isinstance(Redactor(environ={"X_TOKEN": "12345678"}).text(text), str)


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "token" * 4_000, "-" * 20_000, "a.a" * 7_000 + "://", "eyJ" * 7_000, "=" * 20_000]
)
def test_hostile_text_is_read_in_one_go(text: str) -> None:
    """No text makes an expression look again and again at the same place: this would not end within the test's time."""
    assert isinstance(Redactor().text(f"key {text} token"), str)


def test_the_begin_of_a_text_has_no_half_of_a_secret() -> None:
    """What lies beyond the bound is looked at as well, and what is longer than that is seen to be."""
    redactor = Redactor(environ={"A_TOKEN": "abcdefgh"})
    assert f"12345 {REDACTED}" == redactor.begin("12345 abcdefgh", 10)
    assert f"12345 {REDACTED} {'.' * 10}" == redactor.begin(f"12345 abcdefgh {'.' * 10}", 10)
    assert redactor.begin("." * 10_000, 10).endswith("..\N{HORIZONTAL ELLIPSIS}")


def test_innocent_texts_are_remembered_within_bounds() -> None:
    """Few words are said often, so that looking once is enough; long ones and too many are looked at again."""
    redactor = Redactor()
    assert "adam" == redactor.cleaned("adam")
    assert "a" * 1_000 == redactor.cleaned("a" * 1_000)
    assert "password=[redacted]" == redactor.cleaned("password=hunter2")
    assert {"adam"} == redactor.innocent
    for number in range(5_000):
        assert f"shard {number}" == redactor.cleaned(f"shard {number}")
    assert 0 < len(redactor.innocent) <= 4_096
    assert "shard 4999" in redactor.innocent


def test_a_redactor_is_plain_data() -> None:
    """It can be sent to a worker process."""
    again = pickle.loads(pickle.dumps(Redactor(patterns=["abc"])))  # noqa: S301 - our own
    assert REDACTED == again.text("abc")


@pytest.mark.parametrize("capture", [False, True, CaptureOptions(redact=["order [0-9]+"])])
def test_a_trackers_own_patterns_hold_for_all_that_it_keeps(
    capture: bool | CaptureOptions, capsys: pytest.CaptureFixture[str]
):
    """What the tracker was told to redact is in no attribute, error or captured line, whatever the capture was told."""
    store = MemoryStore()
    with (
        PhaseTracker(bridge=None, store=store, capture=capture, redact=[r"customer (?P<secret>[0-9-]+)"]) as tracker,
        contextlib.suppress(ValueError),
        tracker.phase("serve", attributes={"who": "customer 17-42"}, capture=True),
    ):
        print("customer 17-42 has order 5")  # noqa: T201 - it is what is captured
        raise ValueError("customer 17-42")
    (record,) = store.query(path="serve")
    assert {"who": "customer [redacted]"} == record.attributes
    assert "customer [redacted]" == record.error_message
    order = "[redacted]" if isinstance(capture, CaptureOptions) else "order 5"
    assert f"customer [redacted] has {order}" == record.output[0].text
    assert "customer 17-42 has order 5\n" == capsys.readouterr().out


def test_a_pattern_that_cannot_work_is_refused_at_construction():
    """A tracker says which pattern is none, and how to write one; so do the options of capture."""
    with pytest.raises(ConfigurationError, match=r"'\(' is no regular expression.*Write redact="):
        PhaseTracker(redact=["("])
    for make in (PhaseTracker, CaptureOptions):
        with pytest.raises(ConfigurationError, match=r"True is no regular expression.*Write redact="):
            make(redact=True)


def test_a_tracker_without_capture_gives_its_patterns_to_workers():
    """The carrier has what must not be stored, also where nothing is captured."""
    with PhaseTracker(bridge=None, redact=[re.compile("customer [0-9]+", re.IGNORECASE)]) as tracker:
        found = Carried.of(tracker.carrier())
    assert found is not None
    assert [["customer [0-9]+", re.IGNORECASE | re.UNICODE]] == list(found.redact)
