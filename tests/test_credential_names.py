"""Which names are a credential's and which are training's, in text, in attributes and in variables."""

from __future__ import annotations

import pytest

from stormphase import _secret_spans
from stormphase._redaction import REDACTED, Redactor

CREDENTIALS = """
    DB_PASS db_pass dbpass MYSQL_PASS redis-pass REGISTRY_PASS KEYSTORE_PASS admin_pass
    jwt JWT my_jwt session-jwt creds AWS_CREDS db_creds creds_2
    ssh_key SSH_KEY sshkey ssh-key my_ssh_key_2 SSH_KEY_BASE64 license_key LICENCE_KEY master_key MASTER_KEYS gpg_key
    tls_key hmac_key deploy_key decryption_key subscription_key vault_key unseal_key webhook_key consumer_key
    WANDB_KEY OPENAI_KEY aws_key github_key STRIPE_KEY slack_key datadog_key
"""
OF_TRAINING = """
    key keys loss_key metric_key cache_key primary_key foreign_key sort_key partition_key rng_key prng_key dropout_key
    state_key label_key batch_key hf_key signature_key public_key object_key s3_key key_dim num_key_value_heads monkey
    keyframe turkey cross_key ssh_keyframe pass first_pass forward_pass backward_pass num_pass low_pass test_pass n_pass
    compass bypass passes db_passes user_passed jwt_algorithm jwt_ttl ajwt incredsible token_count tokens_per_second
"""
TEXTS_OF_TRAINING = (
    "pass 3 of 5",
    "epoch 2, pass: 3/5, compass=1, forward_pass=0.31 s",
    "loss_key='loss', metric key: accuracy, key=value",
    "lr=1e-3 key=value token_count=12 n_heads=8",
    "all tests pass: yes; the user passes: 3",
    "the ssh keys are on the host",
)


@pytest.mark.parametrize("way", ["{}=hunter2", '"{}": "hunter2"', "{}: hunter2", "--{} hunter2", "['{}'] = 'hunter2'"])
@pytest.mark.parametrize("name", CREDENTIALS.split())
def test_the_value_of_a_credential_is_hidden(name: str, way: str) -> None:
    """However it is assigned, by both halves."""
    text = way.format(name)
    expected = text.replace("hunter2", REDACTED)
    found = {Redactor().text(text), _secret_spans.without_secrets(text, REDACTED)}
    assert {expected} == found


@pytest.mark.parametrize("name", CREDENTIALS.split())
def test_an_attribute_of_such_a_name_is_hidden(name: str) -> None:
    """Whatever its type."""
    assert {name: REDACTED} == Redactor().mapping({name: 4711})


@pytest.mark.parametrize("name", OF_TRAINING.split())
def test_what_training_names_is_shown(name: str) -> None:
    """As text, as an option and as an attribute."""
    text = f"{name}=0.5 --{name} abc {name}: abc"
    assert {text} == {Redactor().text(text), _secret_spans.without_secrets(text, REDACTED)}
    assert {name: 12} == Redactor().mapping({name: 12})


@pytest.mark.parametrize("text", TEXTS_OF_TRAINING)
def test_what_training_says_is_shown(text: str) -> None:
    """Words of credentials stand in innocent sentences as well."""
    assert {text} == {Redactor().text(text), _secret_spans.without_secrets(text, REDACTED)}


def test_names_in_two_cases_are_parted_in_attributes() -> None:
    """`userPass` and `mySshKey` are two and three words."""
    assert {"userPass": REDACTED, "mySshKey": REDACTED, "lossKey": 1} == Redactor().mapping(
        {"userPass": 1, "mySshKey": 1, "lossKey": 1}
    )


def test_a_variable_of_such_a_name_is_looked_for() -> None:
    """Wherever its value stands."""
    redactor = Redactor(environ={"DB_PASS": "correct horse", "FIRST_PASS": "battery staple"})
    assert "a [redacted], battery staple" == redactor.text("a correct horse, battery staple")


@pytest.mark.parametrize("kind", ["PGP PRIVATE KEY BLOCK", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY"])
def test_a_private_key_is_hidden_whatever_its_kind(kind: str) -> None:
    """Its first and last lines stay."""
    text = f"-----BEGIN {kind}-----\n\nlQOY\nabc\n-----END {kind}-----\nloss 1"
    expected = f"-----BEGIN {kind}-----{REDACTED}-----END {kind}-----\nloss 1"
    assert {expected} == {Redactor().text(text), _secret_spans.without_secrets(text, REDACTED)}


def test_a_public_key_is_shown() -> None:
    """It is for everybody."""
    text = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nabc\n-----END PGP PUBLIC KEY BLOCK-----"
    assert {text} == {Redactor().text(text), _secret_spans.without_secrets(text, REDACTED)}
