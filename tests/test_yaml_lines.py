from __future__ import annotations

from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from edgeslm import yaml_lines
from edgeslm.errors import RuleFileError, YamlFileError
from edgeslm.schema.base import FileModel
from edgeslm.yaml_lines import read_yaml, value_at


class Wheel(FileModel):
    size: int
    colour: Literal["red", "green"] = "red"


class Axle(FileModel):
    wheels: tuple[Wheel, ...] = ()


class Cart(FileModel):
    name: str
    axles: dict[str, Axle] = Field(default_factory=dict)
    spare: Wheel | Axle | None = None
    brakes: bool = False


def fault(text: str) -> YamlFileError:
    with pytest.raises(YamlFileError) as caught:
        read_yaml("cart.yaml", text.encode()).validate(Cart)
    return caught.value


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("text", "line", "key", "words", "nearest"),
    [
        (
            "name: a\nbreaks: true\n",
            2,
            "breaks",
            "unknown key; expected: axles, brakes, name, spare",
            "brakes",
        ),
        (
            "name: a\naxles:\n  front:\n    wheels:\n      - size: 3\n      - size: 4\n        color: red\n",
            7,
            "axles.front.wheels.1.color",
            "expected: colour, size",
            "colour",
        ),
        ("name: a\naxles: {front: {wheel: []}}\n", 2, "axles.front.wheel", "expected: wheels", "wheels"),
        ("name: a\nspare:\n  sise: 3\n", 3, "spare.sise", "colour, size, wheels", "size"),
        ("name: a\nspare:\n  size: 3\n  colour: gren\n", 4, "spare.colour", "'red' or 'green'", "green"),
        ("axles: {}\n", 1, "name", "this key is needed", None),
        ("name: 3\n", 1, "name", "a text is expected; put it in quotes", None),
        ("name: a\naxles:\n- x\n", 2, "axles", "keys with values are expected", None),
        ("name: a\nname: b\n", 2, "name", "twice", None),
        ("name: &x a\naxles: *x\n", 2, "axles", "an alias", None),
        ("name: 2026-11-25\n", 1, "name", "a date; put it in quotes", None),
        ("name: [\n", 2, None, "no YAML", None),
        ("", None, None, "is empty", None),
        ("- 1\n", 1, None, "keys with values are expected", None),
    ],
)
def test_says_file_line_key_what_is_expected_and_the_nearest_name(
    text, line, key, words, nearest, fast, monkeypatch
):
    if not fast:
        monkeypatch.setattr(yaml_lines, "_FAST_LOADER", None)
    error = fault(text)
    assert (error.path, error.line, error.key, error.nearest) == ("cart.yaml", line, key, nearest)
    assert "cart.yaml" in str(error)
    assert words in str(error)
    if nearest:
        assert f"Did you mean '{nearest}'?" in str(error)


def test_words_do_not_depend_on_how_yaml_was_built(monkeypatch):
    said = str(fault("name: [a\n"))
    monkeypatch.setattr(yaml_lines, "_FAST_LOADER", None)
    assert str(fault("name: [a\n")) == said


def test_what_is_on_and_off_stays_a_text_that_a_truth_value_takes():
    source = read_yaml("cart.yaml", b"name: off\nbrakes: on\n")
    assert source.data == {"name": "off", "brakes": "on"}
    cart = source.validate(Cart)
    assert (cart.name, cart.brakes) == ("off", True)


def test_the_error_is_of_the_class_that_was_asked_for_and_says_what_an_empty_file_needs():
    with pytest.raises(RuleFileError, match="'rules' is expected"):
        read_yaml("r.yaml", b"", fault=RuleFileError, needs="rules")
    source = read_yaml("r.yaml", b"rules:\n  - name: x\n", fault=RuleFileError)
    error = source.error(("rules", 0, "name"), "is no name", hint="Take another")
    assert isinstance(error, RuleFileError)
    assert str(error) == "r.yaml, line 2, rules.0.name: is no name. Take another"
    assert source.error(("rules", 0, "absent"), "is not there").line == 2


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"[" * 60_000, b"- " * 60_000, b"a: " + b"{a: " * 40_000])
def test_refuses_what_is_no_text_and_what_is_too_deep(body):
    with pytest.raises(YamlFileError):
        read_yaml("deep.yaml", body)


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_an_error_that_names_the_file(body):
    try:
        source = read_yaml("any.yaml", body)
    except YamlFileError as error:
        said = str(error)
    else:
        said = source.name
        assert () in source.lines
    assert said.startswith("any.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text("abc", min_size=1), children, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_data_comes_back_and_every_part_has_its_line(data):
    text = yaml.safe_dump(data, allow_unicode=True)
    source = read_yaml("plain.yaml", text.encode("utf-8", "surrogatepass"))
    assert source.data == data
    for where, line in source.lines.items():
        assert 1 <= line <= text.count("\n") + 1
        value_at(source.data, where)
