"""The map of a home is right, or one sentence says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.agent.home.acting import read_home
from edgeslm.errors import ConfigError

LAMP = "{name: Lamp, domain: light, via: tasmota, topic: lamp}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "valid dictionary"),
        ("entities: []", "at least 1 item"),
        (f"entities: [{LAMP}]\nrooms: []", "rooms: Extra inputs"),
        (f"entities: [{LAMP}, {LAMP}]", "two entities of kind light are called 'lamp' in one area"),
        (
            "entities: [{name: L, area: Attic, domain: light, via: tasmota, topic: l}]",
            "'Attic', which is not there",
        ),
        ("entities: [{name: L, domain: light, via: knx, topic: l}]", "via"),
        ("entities: [{name: L, domain: toaster, via: tasmota, topic: l}]", "domain"),
        ("entities: [{name: L, domain: light, via: tasmota, topic: 'a/#'}]", "topic"),
        (
            "entities: [{name: L, domain: light, via: tasmota, topic: /a}]",
            "neither begins nor ends with a slash",
        ),
        ("entities: [{name: L, domain: light, via: tasmota, topic: $SYS/x}]", "topic"),
        (
            "entities: [{name: L, domain: light, via: plain, topic: l}]",
            "commands go together with 'via: plain'",
        ),
        (
            "entities: [{name: L, domain: lock, via: plain, topic: l, commands: {set_volume: {payload: x}}}]",
            "a lock cannot be told to set_volume",
        ),
        (f"areas: [{{name: A}}, {{name: a}}]\nentities: [{LAMP}]", "two areas are called 'a'"),
        (f"areas: [{{name: A}}, {{name: B, aliases: [a]}}]\nentities: [{LAMP}]", "two areas are called 'a'"),
        ("a: [", "is no YAML"),
        ("\x00", "is no YAML"),
        ("[" * 5000, "is no YAML"),
    ],
)
def test_refuses_a_map_that_is_wrong_and_says_why(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "home.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_home(path)
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


def test_refuses_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_home(tmp_path / "none.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="more than"):
        read_home(tmp_path / "big.yaml")
