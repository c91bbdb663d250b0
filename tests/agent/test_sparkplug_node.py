"""A device as an edge node: births, reports, deaths, orders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent import sparkplug, sparkplug_node
from edgeslm.agent.sparkplug import DataType, Metric, Payload
from edgeslm.agent.sparkplug_node import CATALOGUE, Ask, EdgeNode, Rebirth, Refuse
from edgeslm.errors import CodecError, TopicError
from edgeslm.schema.message import MAX_PROMPT_CHARS, ErrorBody, Result
from edgeslm.schema.metrics import PowerMetrics


def _node() -> EdgeNode:
    return EdgeNode("plant", "kitchen-pi", lambda: 1_700_000_000_000, lambda: "made-up")


def _values(message) -> dict[str, object]:
    return {one.name: one.value for one in sparkplug.decode(message.payload).metrics}


def _order(*metrics: tuple[str, object, DataType]) -> bytes:
    return sparkplug.encode(Payload(0, tuple(Metric(name, value, kind) for name, value, kind in metrics)))


def test_a_birth_names_everything_that_is_ever_reported_with_its_type():
    birth = _node().birth(3)
    metrics = sparkplug.decode(birth.payload).metrics
    assert birth.topic == "spBv1.0/plant/NBIRTH/kitchen-pi"
    assert (birth.qos, birth.retain) == (0, False)
    types = {one.name: one.datatype for one in metrics}
    assert types == {**CATALOGUE, "bdSeq": DataType.INT64, "Node Control/Rebirth": DataType.BOOLEAN}
    assert _values(birth)["bdSeq"] == 3
    assert _values(birth)["Node Control/Rebirth"] is False


def test_a_death_says_the_number_of_its_birth_and_nothing_else():
    death = _node().death(9)
    assert (death.topic, death.qos, death.retain) == ("spBv1.0/plant/NDEATH/kitchen-pi", 1, False)
    assert _values(death) == {"bdSeq": 9}
    assert sparkplug.decode(death.payload).seq is None


def test_a_report_holds_what_changed():
    node = _node()
    node.birth(0)
    report = node.report({"Power/Mean W": 2.5, "Power/Meter": "measured"})
    assert report is not None
    assert report.topic == "spBv1.0/plant/NDATA/kitchen-pi"
    again = node.report({"Power/Mean W": 3.0, "Power/Meter": "measured"})
    assert again is not None
    assert _values(again) == {"Power/Mean W": 3.0}
    assert node.report({"Power/Mean W": 3.0}) is None


def test_nothing_is_reported_before_birth_and_the_birth_makes_up_for_it():
    node = _node()
    assert node.report({"Power/Today J": 5.0}) is None
    assert _values(node.birth(0))["Power/Today J"] == 5.0
    node.death(0)
    assert node.report({"Power/Today J": 6.0}) is None
    assert not node.is_born


@given(steps=st.lists(st.sampled_from(["birth", "report"]), max_size=600))
def test_numbers_rise_by_one_and_begin_at_0_with_each_birth(steps):
    node, expected, at = _node(), None, 0.0
    for step in steps:
        at += 1.0
        message = node.birth(0) if step == "birth" else node.report({"Power/Mean W": at})
        if step == "birth":
            expected = 0
        elif expected is not None:
            expected = (expected + 1) % 256
        seq = None if message is None else sparkplug.decode(message.payload).seq
        assert seq == expected


def test_numbers_of_messages_begin_again_after_255():
    node = _node()
    node.birth(0)
    seqs = [sparkplug.decode(node.report({"Power/Mean W": float(at)}).payload).seq for at in range(257)]
    assert seqs[253:] == [254, 255, 0, 1]


def test_a_prompt_is_asked_under_the_name_that_it_came_with():
    named = _order(("Prompt/Text", "lock", DataType.STRING), ("Prompt/Id", "scada-7", DataType.STRING))
    (order,) = _node().orders(named)
    assert isinstance(order, Ask)
    assert (order.request.id, order.request.prompt) == ("scada-7", "lock")
    (order,) = _node().orders(_order(("Prompt/Text", "lock", DataType.STRING)))
    assert isinstance(order, Ask)
    assert order.request.id == "made-up"


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("", DataType.STRING, "a"),
        (7, DataType.INT64, "a"),
        (None, DataType.STRING, "a"),
        ("x" * (MAX_PROMPT_CHARS + 1), DataType.STRING, "a"),
        ("x", DataType.STRING, "a/b"),
        ("x", DataType.STRING, "y" * 129),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_with_a_reason(text, kind, name):
    (order,) = _node().orders(_order(("Prompt/Text", text, kind), ("Prompt/Id", name, DataType.STRING)))
    assert isinstance(order, Refuse)
    assert order.message.startswith("bad_request: ")
    assert sparkplug_node.refused(order)["Answer/Error"] == order.message


def test_only_true_asks_for_a_birth():
    node = _node()
    assert node.orders(_order(("Node Control/Rebirth", True, DataType.BOOLEAN))) == (Rebirth(),)
    assert node.orders(_order(("Node Control/Rebirth", False, DataType.BOOLEAN))) == ()
    assert node.orders(_order(("Node Control/Rebirth", 1, DataType.INT32))) == ()
    assert node.orders(_order(("Something", "else", DataType.STRING))) == ()


def test_bytes_that_are_no_command_are_a_codec_error():
    with pytest.raises(CodecError):
        _node().orders(b"\xff")


def test_an_error_takes_the_place_of_the_answer_before():
    node = _node()
    node.birth(0)
    node.report({"Answer/Id": "a", "Answer/Text": "yes", "Answer/Total ms": 4.0})
    error = Result(id="b", device="d", error=ErrorBody(code="busy", message="full"))
    report = node.report(sparkplug_node.answered(error))
    assert report is not None
    assert _values(report) == {
        "Answer/Id": "b",
        "Answer/Text": None,
        "Answer/Total ms": None,
        "Answer/Error": "busy: full",
    }


def test_the_draw_is_the_mean_over_the_span():
    report = PowerMetrics(
        device="d", seq=0, at="", span_s=60.0, meter="m", meter_class="measured", error_share=0.0, idle_w=1.0,
        energy_j=150.0, today_j=900.0, points=(), causes=(),
    )  # fmt: skip
    assert sparkplug_node.powered(report)["Power/Mean W"] == 2.5
    assert sparkplug_node.powered(report.model_copy(update={"span_s": 0.0}))["Power/Mean W"] is None


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "\x00"])
def test_refuses_names_that_no_topic_takes(name):
    with pytest.raises(TopicError):
        EdgeNode("plant", name, lambda: 0, lambda: "x")
