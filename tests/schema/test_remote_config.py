"""What may be set from afar, and how it goes together with a device's own settings."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.errors import ConfigError
from edgeslm.schema.config import AgentConfig, BrokerConfig, HomeAssistantConfig, UpdatesConfig
from edgeslm.schema.power import MetersConfig
from edgeslm.schema.remote_config import (
    MAX_SETTINGS_CHARS,
    SETTABLE,
    RemoteConfig,
    check_settings,
    flattened,
    merged,
    parse_settings,
    settings_text,
)

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OVERLAYS = st.dictionaries(KEYS, VALUES, max_size=3)


def document(**changes: Any) -> RemoteConfig:
    fields: dict[str, Any] = {
        "fleet": "green",
        "device": "porch",
        "device_key_sha256": "ab" * 32,
        "version": 1,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(days=1),
        "settings": "{}",
    }
    return RemoteConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        ({"fleet": "other"}, "fleet", "when it joins"),
        ({"device": "other"}, "device", "edgeslm fleet rename"),
        ({"state_dir": "/tmp"}, "state_dir", "journal"),
        ({"board": "pi-5"}, "board", "is what the device is"),
        ({"models": []}, "models", "edgeslm fleet assign"),
        ({"runtime": "auto"}, "runtime", "installed"),
        ({"power": {"vcgencmd": ["rm", "-rf"]}}, "power.vcgencmd", "a program"),
        ({"power": {"root": "/home"}}, "power.root", "a place"),
        ({"updates": {"releases": "http://evil"}}, "updates.releases", "trusts"),
        ({"broker": {"password_file": "/etc/shadow"}}, "broker.password_file", "identity"),
        ({"broker": {"ca_file": "x"}}, "broker.ca_file", "identity"),
        ({"limist": {}}, "limist", "no such setting"),
        ({"broker": {"hots": "x"}}, "broker.hots", "no such setting"),
    ],
)
def test_a_key_that_may_not_be_set_from_afar_is_refused_by_name_and_with_the_reason(
    settings: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(settings)
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key} cannot be set from afar: ")
    assert reason in str(caught.value)


def test_every_setting_of_the_agent_may_be_set_or_has_a_reason_why_not() -> None:
    sections = {
        "broker": BrokerConfig,
        "power": MetersConfig,
        "updates": UpdatesConfig,
        "homeassistant": HomeAssistantConfig,
    }
    names = [name for name in AgentConfig.model_fields if name not in sections]
    names += [f"{section}.{key}" for section, model in sections.items() for key in model.model_fields]
    for name in names:
        section, _, key = name.partition(".")
        settings: dict[str, Any] = {section: {key: 1}} if key else {section: 1}
        assert "no such setting" not in _reason(settings), name
    for section, keys in SETTABLE.items():
        assert section in AgentConfig.model_fields
        assert keys is None or keys <= set(sections[section].model_fields)


def _reason(settings: dict[str, Any]) -> str:
    """Why `settings` may not be set from afar; empty if they may."""
    try:
        check_settings(settings)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "{",
        '{"limits": {"max_queue": NaN}}',
        '{"limits": {"max_queue": 1, "max_queue": 2}}',
        '{"broker": "localhost"}',
        '{"limits": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"budget": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}}}',
    ],
)
def test_what_is_no_overlay_is_an_error_and_never_a_crash(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_settings(text)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_whatever_text_comes_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_settings(text), dict)


def test_what_travels_is_ascii_and_reads_back_as_it_was() -> None:
    settings = {"metrics": {"interval_s": 12.5}, "power": {"plug": {"topic": "küche/plug"}}}
    text = settings_text(settings)
    assert text.isascii()
    assert parse_settings(text) == settings
    assert document(settings=text).settings == text


@pytest.mark.parametrize(
    "settings", [{"limits": date(2026, 1, 1)}, {"a": float("nan")}, {"a": "x" * MAX_SETTINGS_CHARS}]
)
def test_what_cannot_travel_is_refused_before_it_is_signed(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings_text(settings)


def test_sections_are_put_together_key_by_key_and_a_budget_as_a_whole() -> None:
    base = {
        "limits": {"max_queue": 5, "max_answered": 99},
        "updates": {"policy": {"gate": {"energy": 0.5}, "load_s": 3}},
        "budget": {"battery": {"reserve": "20 %"}},
        "threads": 2,
    }
    overlay = {
        "limits": {"max_queue": 7},
        "updates": {"policy": {"gate": {"speed": None}}},
        "budget": {"windows": []},
        "pool": False,
    }
    assert merged(base, overlay) == {
        "limits": {"max_queue": 7, "max_answered": 99},
        "updates": {"policy": {"gate": {"energy": 0.5, "speed": None}, "load_s": 3}},
        "budget": {"windows": []},
        "threads": 2,
        "pool": False,
    }


@given(OVERLAYS, OVERLAYS)
def test_what_an_overlay_says_is_what_is_so_afterwards(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    before = json.dumps(base)
    whole = merged(base, overlay)
    assert merged(whole, overlay) == whole
    assert json.dumps(base) == before
    after = flattened(whole)
    for key, value in flattened(overlay).items():
        if value != {}:
            assert after[key] == value
    assert set(whole) == {*base, *overlay}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"expires_at": NOW},
        {"expires_at": NOW + timedelta(days=32)},
        {"confirm_s": 5},
        {"confirm_s": 901},
        {"settings": "ü"},
        {"settings": "\n"},
        {"device_key_sha256": "ab"},
    ],
)
def test_a_document_beyond_its_bounds_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        document(**changes)
