"""What looks like a secret is found in any text, by both halves alike."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stormphase import _native, _secret_spans

MARKER = "[redacted]"
# Pieces of all the rules, of what they leave, and of what each is next to.
WORDS = r"""
    api access account auth client private secret service storage key keys token tokens pwd password passphrase
    credential authorization cookie set-cookie sas connection_string pad_ eos_ previous_ per value count
    bearer Basic digest negotiate none null True ... *** 50256 0.5 1e-3 97% abcdefgh ABCDEFGHIJKLMNOP
    0123456789abcdef0123 = == ==== => := : " ' \ b' rb" ) , ; & @ / :// https:// x+y:// - -- _ . [redacted] --pwd
    ( [ { } ] "] =[ =( cookie: ;a=b authorization: refresh jwt secretary passwordless ?sig= &sig= x-amz-signature=x
    \\" =\\" :\\' sk_live_ rk_test_ gsk_ xapp- xai- nvapi- dapi r8_ ya29. hvs. sk-learn-and_so-on-and-on
    ssh_ key DB_ pass ssh_key license-keys dbpass creds jwt jwt= --ssh-key first_pass= BLOCK-----
    ghp_ github_pat_ glpat- hf_ sk- xoxb- AKIA ASIA AIza npm_ pypi- dop_v1_ eyJ eyJaaaaaaaaa .bbbbbbbbb .cc -----END
"""
PIECES = [
    *WORDS.split(),
    *(
        "-----BEGIN ",
        "RSA ",
        "PRIVATE KEY-----",
        "PGP PRIVATE KEY BLOCK-----",
        "ssh key: ",
        "api key",
        "--pwd ",
        " ",
        " ",
        " ",
        "\n",
        "\x00",
        "\x1c",
        "\x85",
        "\xa0",
    ),
    *("\u2003", "\u212aey", "\u0130", "é", "\u05d0\u202e", "日本", "\U0001f600", "\udc80"),
]
# Names as they stand before a value, of words that make one a credential's and of words that make one none.
FIRST = "ssh db license loss api access auth client secret session my user first previous prev generated per pad x"
LAST = "pass passes creds jwt key keys token tokens secret pwd password cookie authorization value count tokenize"
NAMED = st.tuples(
    st.sampled_from(["", "--", "-", '"', "x"]),
    st.lists(st.sampled_from(FIRST.split()), max_size=2).map(lambda words: "".join(f"{word}_" for word in words)),
    st.sampled_from(LAST.split()),
    st.sampled_from(["", "_x", ".token", " key"]),
    st.sampled_from(
        [
            "=",
            ": ",
            '": "',
            '\\": \\"',
            "'] = '",
            "= \\\n  ",
            ":\n          ",
            "', '",
            "==",
            "=>",
            " ",
            "        =",
            "\xa0=",
            "!=",
        ]
    ),
    st.sampled_from(["abc", "'a b'", "b'a\\'b'", '"', "none", "12", "bearer x", "[redacted]", "é", "--x", ""])
    | st.sampled_from(
        ["(1, 2)", "[{'a': [1]}, 2]", "(\n  'a'\n 'b')", "[\n'a", "str('a b')", "{1", "x; y=1; z", "x yz", 'x\\"']
    ),
    st.sampled_from(["", " ", ",", "\n", '"', ")", "]"]),
).map("".join)
TEXTS = st.lists(NAMED, max_size=4).map("".join) | st.lists(
    st.sampled_from(PIECES) | st.text(max_size=3), max_size=20
).map("".join)


@pytest.mark.skipif(_native.speedups is None, reason="both halves are compared where both are built")
@given(TEXTS)
@example('creds= \\\n  "')
@settings(max_examples=2_000, deadline=None)
def test_both_halves_find_the_same(text: str) -> None:
    """The compiled half replaces what the Python one does, in any text of what the rules are about."""
    assert _secret_spans.without_secrets(text, MARKER) == _native.speedups.without_secrets(text, MARKER)


@given(TEXTS)
@settings(max_examples=500, deadline=None)
def test_what_is_found_is_in_order_and_apart(text: str) -> None:
    """Each is a piece of the text, and the next one begins behind it."""
    spans = _secret_spans.secret_spans(text) or []
    edges = [edge for span in spans for edge in span]
    assert sorted({*edges}) == edges
    assert all(0 <= edge <= len(text) for edge in edges)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password=b'it\\'s' x", "password=b'[redacted]' x"),
        ('password="hunter2', 'password="[redacted]'),
        ("if token == 'abc':", "if token == '[redacted]':"),
        ("token ====== x", "token ====== x"),
        ("password_of_the_user_who_has_the_longest_name_of_all_of_them = x", None),
        ("client secret key: x", "client secret key: [redacted]"),
        ("secret_api key: x", "secret_api key: [redacted]"),
        ("--api-key 'a b' c", "--api-key '[redacted]' c"),
        ("secret text --verbose yes", "secret text --verbose yes"),
        ("token token_value=abc --x", "token token_value=[redacted] --x"),
        ("--password auth=abc,d", "--password [redacted]"),
        ('token=b"[redacted]', 'token=b"[redacted]'),
        ("a://u:" + "p" * 500 + "@host", "a://u:[redacted]@host"),
        ("-eyJ-eyJhbGciOiJ9.eyJzdWIiOiIx.c2ln x", "-[redacted] x"),
        ('password:\n            "a b"\nlr', 'password:\n            "[redacted]"\nlr'),
        ("password = \\\n    'a b'\nlr", "password = \\\n    '[redacted]'\nlr"),
        ("password:\n            a", "password:\n            a"),
        ("api_key=(\n  'a'\n  'b'\n)\nlr", "api_key=[redacted]\n)\nlr"),
        ("password=é\u2028é", "password=[redacted]\u2028é"),
        ("\u212aey api_\u212aey: é", "\u212aey api_\u212aey: [redacted]"),
        ("-----BEGIN PRIVATE KEY-----a-----END-----BEGIN PRIVATE KEY-----b", None),
    ],
)
def test_where_a_secret_ends(text: str, expected: str | None) -> None:
    """Names, quotes, options and runs are taken whole, and what stands around them is left."""
    clean = _secret_spans.replace_secrets(text, MARKER)
    assert clean == _secret_spans.without_secrets(text, MARKER)
    if expected is None:
        assert MARKER in clean
    else:
        assert expected == clean


@pytest.mark.parametrize("half", ["Python", "loaded"])
def test_a_text_made_of_credentials_is_hidden_from_where_that_shows(half: str) -> None:
    """More than 64 values, and more than one in 18 characters, are nothing that anybody reads; fewer stay apart."""
    replace = _secret_spans.without_secrets if half == "Python" else _secret_spans.replace_secrets
    dense, rare = "pwd=a,", "password=abcdefgh "
    assert f"pwd={MARKER}," * 64 == replace(dense * 64, MARKER)
    assert f"pwd={MARKER}," * 64 + f"pwd={MARKER}" == replace(dense * 100, MARKER)
    assert f"password={MARKER} " * 500 == replace(rare * 500, MARKER)
    assert "token=1," * 500 == replace("token=1," * 500, MARKER)
