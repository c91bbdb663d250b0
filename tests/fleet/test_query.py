from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import SelectionError
from edgeslm.fleet.query import (
    MAX_CHARS,
    MAX_DEPTH,
    And,
    Comparison,
    Not,
    Or,
    Query,
    groups_in,
    matches,
    parse,
    renamed_group,
    text_of,
)
from edgeslm.fleet.query_fields import FIELD_NAMES, OPERATORS, Moment, find_field
from edgeslm.schema.fleet import DeviceFacts

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def device(**facts: Any) -> DeviceFacts:
    return DeviceFacts.model_validate(
        {"name": "kitchen", "standing": "active", "key_sha256": "0" * 64, "created_at": NOW, **facts}
    )


def is_meant(expression: str, one: DeviceFacts | None = None, **groups: set[str]) -> bool:
    return matches(parse(expression), one or KITCHEN, Moment(NOW, groups))


KITCHEN = device(
    presence="online",
    board="pi-4b",
    serial="10000000ABCDEF01",
    agent="0.2.0",
    tags=("north", "sunny"),
    notes="by the North door",
    running={"home-command": "1.1.0", "odd": "my build"},
    assigned={"home-command": "1.2.0"},
    meter="measured",
    last_seen_at=NOW - timedelta(hours=1),
    expires_at=NOW + timedelta(days=5),
)


# --- what it means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "board=pi-4b and tag:north and model.home-command < 1.2",
        "board = pi-5 or board = pi-4b",
        "not board = pi-5",
        "board = pi-5 or tag:north and online",
        "(board = pi-5 or tag:north) and online",
        "online",
        "presence = online",
        "name ~ kit*",
        "serial ~ *abcdef*",
        'note ~ "*north*"',
        "tag ~ sun* and tag != old",
        "finding = none and quarantine = none and pin = none",
        "profile = none and profile != something",
        "meter = measured",
        "agent >= 0.2 and agent < 0.2.1",
        "model.home-command = 1.1 and model.home-command ~ 1.*",
        "model.home-command > 1.1.0-rc.1",
        'model.odd = "my build"',
        "model.other = none and model.other != 1.0.0",
        "assigned.home-command > 1.1",
        "seen < 2h and seen >= 60min and seen <= 3600s",
        "expires < 1w and expires > 4d",
        "group:upper and not group:lower",
    ],
)
def test_a_device_is_meant(expression: str) -> None:
    assert is_meant(expression, upper={"kitchen"}, lower={"cellar"})
    assert not is_meant(f"not ({expression})", upper={"kitchen"}, lower={"cellar"})


@pytest.mark.parametrize(
    "expression",
    [
        "board = PI-4B",
        "model.home-command < 1.1",
        "model.other < 9",
        "model.odd < 9 or model.odd > 0",
        "tag:nor",
        "profile ~ *",
        "seen > 1h",
        "group:lower",
        "finding != none",
    ],
)
def test_a_device_is_not_meant(expression: str) -> None:
    assert not is_meant(expression, lower={"cellar"})


def test_what_never_happened_is_older_than_anything() -> None:
    new = device()
    assert is_meant("seen > 9999w and seen = none", new)
    assert not is_meant("seen < 9999w", new)


def test_the_words_that_bind_are_not_then_and_then_or() -> None:
    a, b, c = (Comparison("tag", "=", letter) for letter in "abc")
    assert parse("tag:a or tag:b and not tag:c") == Or((a, And((b, Not(c)))))
    assert parse("(tag:a or tag:b) and tag:c") == And((Or((a, b)), c))


def test_quotes_make_a_text_of_any_word() -> None:
    assert parse('serial = "none"') == Comparison("serial", "=", "none")
    assert parse("serial = none") == Comparison("serial", "=", None)
    assert parse(r'note = "a \"b\" \\ c"') == Comparison("note", "=", r'a "b" \ c')


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "position", "says"),
    [
        ("", 0, "a field"),
        ("board", 5, "operator"),
        ("board =", 7, "a value"),
        ("board = pi-4b and", 17, "a field"),
        ("board = pi-4b tag:north", 14, "'and' or 'or'"),
        ("(board = pi-4b", 14, r"'\)'"),
        ("board = pi-4b)", 13, "before"),
        ("board < pi-4b", 6, "= != ~"),
        ("seen < soon", 7, "no age"),
        ("seen = 2h", 7, "none"),
        ("agent < new", 8, "no version"),
        ("agent < none", 8, "'none'"),
        ("group ~ a*", 6, "= !="),
        ("group = none", 8, "a name"),
        ('note = "open', 7, "a quote"),
        ("board = a&b", 9, "'&'"),
        ("board = and", 8, "a value"),
        ("and = 3", 0, "a field"),
        ("model. = 1", 0, "no field"),
        ("model.UPPER = 1", 0, "no field"),
        ("board = {x}", 8, "'{'"),
    ],
)
def test_a_fault_is_told_with_its_place(expression: str, position: int, says: str) -> None:
    with pytest.raises(SelectionError, match=says) as caught:
        parse(expression)
    assert (caught.value.position, caught.value.expression) == (position, expression)
    assert f"character {position + 1} " in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("bord", "board"), ("tags", "tag"), ("modle.home-command", "model.home-command"), ("sean", "seen")],
)
def test_a_misspelt_field_brings_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(SelectionError) as caught:
        parse(f"online and {wrong} = 1")
    assert right in caught.value.nearest


def test_what_is_too_long_or_too_deep_is_refused() -> None:
    with pytest.raises(SelectionError, match=str(MAX_CHARS)):
        parse("online or " * MAX_CHARS)
    for deep in ("(" * (MAX_DEPTH + 1) + "online", "not " * (MAX_DEPTH + 1) + "online"):
        with pytest.raises(SelectionError, match=str(MAX_DEPTH)):
            parse(deep)


@given(st.text(max_size=80) | st.text(alphabet='()=!<>~:"\\ andornotboardtag.12', max_size=60))
def test_whatever_is_written_is_a_query_or_a_named_fault(expression: str) -> None:
    query = fault = None
    try:
        query = parse(expression)
    except SelectionError as error:
        fault = error
    if query is not None:
        assert matches(query, KITCHEN, Moment(NOW)) in {True, False}
        assert parse(text_of(query)) == query
    else:
        assert fault is not None
        assert fault.position is not None
        assert 0 <= fault.position <= len(expression)


# --- laws ---------------------------------------------------------------------------------------------------


def _comparisons() -> st.SearchStrategy[Query]:
    names = [name.replace("NAME", "home-command") for name in FIELD_NAMES]

    def of_field(name: str) -> st.SearchStrategy[Query]:
        asked = find_field(name)
        assert asked is not None
        texts = st.sampled_from(["kitchen", "pi-4b", "north", "1.1", "*", "none", "and", 'a "b" \\', "ä, b"])
        values: dict[str, st.SearchStrategy[str | None]] = {
            "text": texts,
            "set": texts,
            "group": texts,
            "version": st.sampled_from(["1", "1.1", "1.1.0", "0.2.0-rc.1", "9.0.0"]),
            "age": st.sampled_from(["5s", "90min", "2h", "7d", "4w"]),
        }

        def of_operator(operator: Any) -> st.SearchStrategy[Query]:
            may_be_none = operator in {"=", "!="} and asked.kind != "group"
            value = values[asked.kind]
            if asked.kind == "age" and may_be_none:
                value = st.none()
            elif may_be_none:
                value = value | st.none()
            return st.builds(Comparison, st.just(name), st.just(operator), value)

        return st.sampled_from(OPERATORS[asked.kind]).flatmap(of_operator)

    return st.sampled_from(names).flatmap(of_field)


def _several(parts: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    lists = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, parts) | st.builds(And, lists) | st.builds(Or, lists)


QUERIES = st.recursive(_comparisons(), _several, max_leaves=8)
DEVICES = st.builds(
    device,
    board=st.sampled_from([None, "pi-4b", "pi-5"]),
    presence=st.sampled_from([None, "online", "offline"]),
    agent=st.sampled_from([None, "0.2.0", "my build"]),
    tags=st.sampled_from([(), ("north",), ("north", "south")]),
    running=st.dictionaries(st.just("home-command"), st.sampled_from(["1.0.0", "1.1.0", "odd"])),
    last_seen_at=st.none() | st.integers(0, 10**6).map(lambda s: NOW - timedelta(seconds=s)),
)


@given(QUERIES)
def test_writing_and_reading_are_inverses(query: Query) -> None:
    assert parse(text_of(query)) == query


@given(QUERIES, QUERIES, DEVICES)
def test_queries_keep_the_laws_of_logic(one: Query, other: Query, asked: DeviceFacts) -> None:
    moment = Moment(NOW, {"kitchen": {"kitchen"}})

    def holds(query: Query) -> bool:
        return matches(query, asked, moment)

    assert holds(Not(one)) is not holds(one)
    assert holds(Not(And((one, other)))) is holds(Or((Not(one), Not(other))))
    assert holds(Not(Or((one, other)))) is holds(And((Not(one), Not(other))))
    assert holds(And((one, Or((one, other))))) is holds(one)
    assert holds(And((one, Not(one)))) is False


@given(_comparisons(), DEVICES)
def test_not_equal_is_the_opposite_of_equal(one: Query, asked: DeviceFacts) -> None:
    assert isinstance(one, Comparison)
    if one.operator in {"=", "!="}:
        other = replace(one, operator="=" if one.operator == "!=" else "!=")
        moment = Moment(NOW, {"kitchen": {"kitchen"}})
        assert matches(one, asked, moment) is not matches(other, asked, moment)


@given(
    st.sampled_from(["1.0.0", "1.1.0", "1.1.0-rc.1", "2.0.0"]),
    st.sampled_from(["1", "1.1", "1.1.0-rc.1", "2.0.0"]),
)
def test_versions_are_in_one_order(has: str, value: str) -> None:
    one = device(running={"m": has})
    found = {sign: is_meant(f"model.m {sign} {value}", one) for sign in ("<", "=", ">", "<=", ">=")}
    assert [found["<"], found["="], found[">"]].count(True) == 1
    assert found["<="] == (found["<"] or found["="])
    assert found[">="] == (found[">"] or found["="])


# --- groups in queries --------------------------------------------------------------------------------------


def test_groups_in_a_query_are_found_and_renamed() -> None:
    query = parse("group:upper or not (group != lower and name = upper)")
    assert groups_in(query) == {"upper": 6, "lower": 29}
    assert (
        text_of(renamed_group(query, "upper", "top")) == "group:top or not (group != lower and name = upper)"
    )
