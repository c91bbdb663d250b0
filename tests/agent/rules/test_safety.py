from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.rules.conditions import ExpressionError
from edgeslm.agent.rules.safety import Allowed, Clamp, Schema, check_allowed_filter, find_circle
from edgeslm.errors import AnswerRefusedError

NAMES = "abcdef"
GRAPHS = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3), max_size=6)


@given(GRAPHS)
def test_finds_a_circle_exactly_where_there_is_one(edges):
    def reaches(start: str, goal: str) -> bool:
        seen, stack = set(), list(edges.get(start, ()))
        while stack:
            name = stack.pop()
            if name == goal:
                return True
            if name not in seen:
                seen.add(name)
                stack += edges.get(name, ())
        return False

    found = find_circle(edges)
    if found is None:
        assert not any(reaches(name, name) for name in edges)
    else:
        assert found[0] == found[-1]
        assert all(after in edges[before] for before, after in itertools.pairwise(found))


@pytest.mark.parametrize(
    "topic",
    [
        "edgeslm/v1/home/other/prompt",
        "edgeslm/v1/home/other/cmd/reboot/1",
        "edgeslm/v1/home/here/result/1",
        "edgeslm",
        "$SYS/broker",
        "home/other/set",
        "home/lamp/set/more",
        "home/+/set",
        "",
        "home/\x00/set",
        "home/" + "x" * 2000 + "/set",
    ],
)
def test_publishes_nowhere_but_where_it_may(topic):
    allowed = Allowed(["home/lamp/set", "edgeslm/#", "home/+/set/x"])
    with pytest.raises(AnswerRefusedError):
        allowed.check(topic)
    Allowed(["home/+/set"]).check("home/lamp/set")


@pytest.mark.parametrize("name", ["#", "+/x", "edgeslm/v1/+/x/prompt", "edgeslm/#", "$SYS/#"])
def test_a_file_cannot_allow_what_nobody_may(name):
    with pytest.raises(ExpressionError):
        check_allowed_filter(name)


def test_schemas_fetch_nothing_and_their_patterns_do_not_explode():
    with pytest.raises(ExpressionError):
        Schema({"$ref": "https://example.org/x"})
    with pytest.raises(ExpressionError):
        Schema({"$ref": "file:///etc/passwd"})
    near = Schema({"$defs": {"n": {"type": "number"}}, "properties": {"a": {"$ref": "#/$defs/n"}}})
    near.check({"a": 1}, "it")
    with pytest.raises(AnswerRefusedError, match="at a"):
        near.check({"a": "x"}, "it")
    slow = Schema({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(AnswerRefusedError):
        slow.check("a" * 5000 + "!", "it")


def test_a_schema_has_a_size():
    with pytest.raises(ExpressionError, match="parts"):
        Schema({"enum": list(range(1000))})


@given(st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6))
def test_a_clamped_number_is_in_its_range(value):
    found, changed = Clamp({"a.b[0]": (-5.0, 30.5)}).apply({"a": {"b": [value, 99]}})
    assert isinstance(found, dict)
    inner = found["a"]["b"][0]  # type: ignore[index,call-overload]
    assert -5 <= inner <= 30.5
    assert bool(changed) == (inner != value)
    assert found["a"]["b"][1] == 99  # type: ignore[index,call-overload]


def test_what_is_no_number_is_not_clamped_but_refused():
    with pytest.raises(AnswerRefusedError, match="no number"):
        Clamp({"a": (0, 1)}).apply({"a": "5"})
    assert Clamp({"a": (0, 1)}).apply({"b": 7}) == ({"b": 7}, ())
    assert Clamp({".": (0, 1)}).apply(7) == (1, (".: 7 -> 1",))
