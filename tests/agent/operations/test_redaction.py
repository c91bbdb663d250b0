from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.operations.redaction import REMOVED, Redactor

SECRET = "kWq7-planted-Zz9"
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\nAAAA\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host/releases",
        f"https://{SECRET}@host",
        f"mqtts://a:{SECRET}@[::1]:8883/x",
        f"https://host/file?token={SECRET}&x=1",
        f"https://host/file?X-Amz-Signature={SECRET}",
        f"https://host/#access={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}==",
        f"password={SECRET}",
        f"password: {SECRET}",
        f"'passwd': '{SECRET}', 'x': 1",
        f'{{"api_key": "{SECRET}"}}',
        f"client_secret = {SECRET} rest",
        f"password='several words, {SECRET}', x=1",
        f'{{"passphrase": "several; words ({SECRET})"}}',
        f'password="{SECRET}',
        PEM,
        PEM[:-10],
        f"before {PEM} after",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    said = Redactor().text(text)
    assert SECRET not in said
    assert REMOVED in said


@pytest.mark.parametrize(
    "text",
    [
        "broker lost: [Errno 111] Connection refused",
        "http://host:8080/releases/home-command/1.0.0.slm",
        "40 tokens a second, token_s 0.02",
        "2026-12-01 10:00:00,000 INFO edgeslm.agent.service: connected to the broker, session kept",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_what_was_taken_out_of_quotes_is_shown_as_such() -> None:
    assert (
        Redactor().text("password='a b' x=1, token: \"c d\"")
        == f"password='{REMOVED}' x=1, token: '{REMOVED}'"
    )


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"password_file": "/etc/x", "host": "h"}, {"password_file": REMOVED, "host": "h"}),
        ({"broker": {"key_file": "/k", "port": 1}}, {"broker": {"key_file": REMOVED, "port": 1}}),
        ({"max_tokens": 7, "token": "x"}, {"max_tokens": 7, "token": REMOVED}),
        ({"secrets": ["a", "b"]}, {"secrets": REMOVED}),
        ({"password": None}, {"password": None}),
        ([("a", 1)], [["a", 1]]),
        (
            {"updates": {"sources": [f"http://u:{SECRET}@h"]}},
            {"updates": {"sources": [f"http://{REMOVED}@h"]}},
        ),
    ],
)
def test_settings_that_hold_secrets_are_known_by_name(value: Any, kept: Any) -> None:
    assert Redactor().value(value) == kept


def test_the_device_s_own_secrets_are_taken_out_wherever_they_stand() -> None:
    redactor = Redactor([f"{SECRET}\n", "-----BEGIN KEY-----\nMIGHlines\nofKEY=\n-----END KEY-----\n"])
    encoded = base64.b64encode(SECRET.encode()).decode()
    said = redactor.text(
        f"login as x with {SECRET}!, once more {encoded}; MIGHlines ofKEY= -----BEGIN KEY-----"
    )
    assert SECRET not in said
    assert encoded not in said
    assert "MIGHlines" not in said
    assert redactor.value({"note": [f"{SECRET}"]}) == {"note": [REMOVED]}


def test_the_longest_secret_goes_first() -> None:
    assert Redactor(["abcd", "abcdefgh"]).text("x abcdefgh y") == f"x {REMOVED} y"


@given(
    st.recursive(
        st.text() | st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_known_secret_is_in_no_text_of_whatever_is_told(value: Any) -> None:
    planted = json.loads(json.dumps({"a": value, "b": [SECRET, {"c": f"x{SECRET}y"}]}))
    assert SECRET not in json.dumps(Redactor([SECRET]).value(planted))


@given(st.text(max_size=3000))
def test_any_text_can_be_looked_through(text: str) -> None:
    Redactor(["known-secret"]).text(text)
