from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import CertificateError, ClaimError, CodecError
from edgeslm.fleet.ca import CertificateAuthority
from edgeslm.schema.enrol import EnrolReply, Sealed
from edgeslm.trust import claim
from edgeslm.trust.claim import ALPHABET, TOKEN_CHARS, Token, read_token, seal, unseal

texts = st.text(ALPHABET)
tokens = st.builds(
    Token,
    st.text(ALPHABET, min_size=6, max_size=6),
    st.text(ALPHABET, min_size=16, max_size=16),
    st.text(ALPHABET, min_size=16, max_size=16),
)
REPLY = EnrolReply(state="pending", key_sha256="0" * 64, reason="later")


@given(tokens)
def test_a_token_reads_back_as_it_was_written(token: Token) -> None:
    assert read_token(str(token)) == token
    assert read_token(str(token).lower().replace("-", " ")) == token


@given(tokens)
def test_letters_that_look_like_digits_are_read_as_digits(token: Token) -> None:
    typed = str(token).replace("0", "O").replace("1", "l")
    assert read_token(typed) == token


@given(tokens, st.integers(0, TOKEN_CHARS - 1), st.sampled_from(ALPHABET))
def test_a_typing_mistake_never_reads_as_the_same_token(token: Token, at: int, char: str) -> None:
    plain = str(token).replace("-", "").lower()
    if plain[at] == char:
        return
    typed = plain[:at] + char + plain[at + 1 :]
    with contextlib.suppress(
        ClaimError
    ):  # two check characters let one in a thousand through, as another token
        assert read_token(typed) != token


def test_of_a_thousand_typing_mistakes_hardly_any_goes_unnoticed() -> None:
    passed = 0
    for _ in range(1000):
        token = Token(claim.new_claim_id(), claim.new_secret(), claim.new_secret())
        plain = str(token).replace("-", "").lower()
        typed = plain[1] + plain[0] + plain[2:]
        if typed != plain:
            try:
                read_token(typed)
                passed += 1
            except ClaimError:
                pass
    assert passed <= 10


@pytest.mark.parametrize(
    "text", ["", "abc", "u" * TOKEN_CHARS, "ä" * TOKEN_CHARS, "{}", "0" * (TOKEN_CHARS + 1)]
)
def test_what_is_no_token_is_refused_by_name(text: str) -> None:
    with pytest.raises(ClaimError):
        read_token(text)


def test_a_token_does_not_show_its_secret_when_it_is_logged() -> None:
    token = Token("abcdef", "s" * 16, "p" * 16)
    assert "s" * 16 not in repr(token)


def test_new_claims_have_secrets_of_80_bits_that_differ() -> None:
    secrets = {claim.new_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(len(secret) == 16 and set(secret) <= set(ALPHABET) for secret in secrets)
    assert {char for secret in secrets for char in secret} == set(ALPHABET)


def test_the_broker_s_password_tells_neither_the_secret_nor_the_key_of_the_seal() -> None:
    secret = claim.new_secret()
    password = claim.broker_password(secret)
    assert secret not in password
    assert claim.proof_key(secret).hex()[:32] != password
    assert claim.broker_password(claim.new_secret()) != password


@given(st.text(max_size=100))
def test_a_sealed_message_opens_under_the_same_key_and_direction_only(reason: str) -> None:
    message = REPLY.model_copy(update={"reason": reason})
    body = seal(b"key", "reply", message)
    assert unseal(b"key", "reply", EnrolReply, body) == message
    with pytest.raises(ClaimError):
        unseal(b"other key", "reply", EnrolReply, body)
    with pytest.raises(ClaimError):
        unseal(b"key", "request", EnrolReply, body)


def test_a_changed_message_does_not_open() -> None:
    sealed = Sealed.model_validate_json(seal(b"key", "reply", REPLY))
    changed = sealed.model_copy(update={"body": sealed.body.replace("pending", "issued")})
    with pytest.raises(ClaimError):
        unseal(b"key", "reply", EnrolReply, changed.model_dump_json().encode())


@given(st.binary(max_size=300))
def test_rubbish_does_not_open(body: bytes) -> None:
    with pytest.raises((CodecError, ClaimError)):
        unseal(b"key", "reply", EnrolReply, body)


def test_a_pin_is_of_one_certificate() -> None:
    now = datetime.now(UTC)
    pem = CertificateAuthority.create("green", now).certificate_pem
    other = CertificateAuthority.create("green", now).certificate_pem
    assert claim.pem_pin(pem) == claim.authority_pin(ssl.PEM_cert_to_DER_cert(pem))
    assert claim.pem_pin(pem) != claim.pem_pin(other)
    with pytest.raises(CertificateError):
        claim.pem_pin("no certificate")
