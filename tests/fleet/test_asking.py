from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.fleet.asking import Answer, Gathering, agreement, meaning
from edgeslm.schema.message import ErrorBody, Receipt, Result

RECEIPT = Receipt(
    prompt_tokens=3,
    completion_tokens=4,
    queue_ms=0.1,
    total_ms=5.0,
    energy_j=0.2,
    energy_net_j=0.1,
    power_w=3.0,
    meter="estimated",
    model="m@1.0.0",
    model_sha256="0" * 64,
    runtime="none",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def result(request_id: str, device: str, text: str = "yes", **changes: Any) -> Result:
    return Result(id=request_id, device=device, text=text, receipt=RECEIPT, **changes)


def gathering(*devices: str) -> Gathering:
    return Gathering(devices, dict.fromkeys(devices, "online"))


def answered(device: str, text: str) -> Answer:
    return Answer(device=device, state="answered", text=text, receipt=RECEIPT)


def test_who_is_not_there_is_named_and_not_waited_for() -> None:
    found = Gathering(
        ["on", "off", "asleep", "new"], {"on": "online", "off": "offline", "asleep": "sleeping"}
    )
    assert found.open == ["on"]
    assert set(found.ids) == {"on"}
    states = {answer.device: (answer.state, answer.presence) for answer in found.answers}
    assert states["off"] == ("absent", "offline")
    assert states["asleep"] == ("absent", "sleeping")
    assert states["new"] == ("absent", None)


def test_a_device_has_one_answer_its_first() -> None:
    found = gathering("a", "b")
    first = found.take(result(found.ids["a"], "a", "one"), 0.5)
    assert first is not None
    assert (first.text, first.took_s, first.is_answered) == ("one", 0.5, True)
    assert found.take(result(found.ids["a"], "a", "two"), 0.6) is None
    assert found.open == ["b"]
    assert [answer.text for answer in found.answers] == ["one", None]


def test_no_device_answers_in_the_place_of_another() -> None:
    found = gathering("a", "b")
    assert found.ids["a"] != found.ids["b"]
    assert found.take(result(found.ids["a"], "b"), 0.1) is None
    assert found.take(result("guessed", "a"), 0.1) is None
    assert found.open == ["a", "b"]


def test_an_error_is_the_last_word_and_no_answer() -> None:
    found = gathering("a")
    error = ErrorBody(code="busy", message="full", retry_after_s=2)
    taken = found.take(Result(id=found.ids["a"], device="a", error=error), 0.1)
    assert taken is not None
    assert (taken.state, taken.error, taken.is_answered) == ("failed", error, False)
    assert found.open == []


def test_one_that_goes_away_owes_its_answer_still() -> None:
    found = gathering("a", "b")
    found.present("a", "offline")
    assert (found.open, found.reachable) == (["a", "b"], ["b"])
    assert found.take(result(found.ids["a"], "a"), 1.0) is not None
    assert [answer.device for answer in found.give_up()] == ["b"]
    assert [answer.state for answer in found.answers] == ["answered", "silent"]
    found.present("a", "offline")
    assert found.answers[0].presence == "offline"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ("[1, 2]", "[2, 1]", False),
        ("  lights  on\n", "lights on", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("on", "On", False),
        ("NaN", "nan", False),
        ("1e999", "1e999", True),
        ("[" * 100_000, "[" * 100_000, True),
        ("9" * 5000, "9" * 5000, True),
        ("", " ", True),
    ],
)
def test_json_is_compared_by_its_value_and_text_by_its_words(one: str, other: str, same: bool) -> None:
    assert (meaning(one) == meaning(other)) is same


@given(VALUES)
def test_however_json_is_written_it_means_the_same(value: Any) -> None:
    assert meaning(json.dumps(value, indent=2)) == meaning(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )


@given(st.text(max_size=60))
def test_any_text_has_a_meaning(text: str) -> None:
    assert meaning(text) == meaning(text)


def test_the_most_frequent_answer_comes_first_with_its_devices() -> None:
    answers = [
        answered("a", "no"),
        answered("b", '{"x":1}'),
        answered("c", '{ "x": 1 }'),
        Answer(device="d", state="absent"),
    ]
    found = agreement(answers)
    assert (found.asked, found.answered, found.same) == (4, 3, 2)
    assert [(group.text, group.devices) for group in found.groups] == [
        ('{"x":1}', ("b", "c")),
        ("no", ("a",)),
    ]
    assert str(found) == "3 of 4 answered, 2 of them the same, 2 different answers"
    assert str(agreement(answers[1:3])) == "2 of 2 answered, all the same"
    assert str(agreement(answers[:2])) == "2 of 2 answered, no two the same, 2 different answers"
    assert str(agreement([])) == "0 of 0 answered"
