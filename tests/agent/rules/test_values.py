from __future__ import annotations

import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sensors import hostile
from edgeslm.agent.rules.values import (
    MAX_DEPTH,
    MAX_NODES,
    check_bounded,
    check_type,
    decode,
    extract,
    parse_path,
)
from edgeslm.errors import PayloadError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(-1e15, 1e15)
    | st.text(max_size=20),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_small_json_comes_through_as_it_is(value):
    try:
        body = json.dumps(value).encode()
    except UnicodeEncodeError:
        return
    assert decode(body, "json") == json.loads(body)


@given(st.binary(max_size=200), st.sampled_from(["json", "text", "number"]))
def test_any_bytes_are_a_value_or_a_named_error(body, how):
    with contextlib.suppress(PayloadError):
        check_bounded(decode(body, how))


@pytest.mark.parametrize("how", ["json", "text", "number"])
def test_hostile_bodies_are_a_value_or_a_named_error(how):
    chance = random.Random(3)
    for _ in range(1500):
        with contextlib.suppress(PayloadError):
            check_bounded(decode(hostile(chance), how))


@pytest.mark.parametrize(
    "body",
    [
        b"NaN",
        b'{"a": Infinity}',
        b"-1e999",
        b"1" * 400,
        b"1e15000",
        b'"\\ud800"',
        b"\xff",
        b"",
        b"[" * 100_000,
        b"[1," * 5000,
        b"x" * 70_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" + b"1," * MAX_NODES + b"1]",
        b'"' + b"x" * 9000 + b'"',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_refuses_what_is_no_reading(body):
    with pytest.raises(PayloadError):
        decode(body, "json")


@pytest.mark.parametrize("text", ["1_000", "nan", "inf", "0x10", "1e", "٣", "1" * 30, "1 2", ""])
def test_refuses_numbers_that_are_none(text):
    with pytest.raises(PayloadError):
        decode(text.encode(), "number")


@pytest.mark.parametrize(("text", "number"), [("21", 21.0), (" -3.5\n", -3.5), ("1e3", 1000.0), (".5", 0.5)])
def test_reads_numbers_as_sensors_write_them(text, number):
    assert decode(text.encode(), "number") == number


def test_follows_paths():
    value = {"a": {"b": [{"c": 7}]}, "x y": 1}
    assert extract(value, parse_path("a.b[0].c")) == 7
    assert extract(value, parse_path("x y")) == 1
    assert extract([3], parse_path("[0]")) == 3
    for path in ("a.c", "a.b[1]", "a[0]", "a.b.c"):
        with pytest.raises(PayloadError, match="there is no"):
            extract(value, parse_path(path))


@pytest.mark.parametrize(
    ("value", "kind"),
    [("21", "number"), (True, "number"), (1, "boolean"), (1, "text"), (None, "number"), ({}, "text")],
)
def test_types_are_never_converted(value, kind):
    with pytest.raises(PayloadError, match="is expected"):
        check_type(value, kind)
