"""Sparkplug's bytes and topics: as another implementation writes them, and whatever is sent."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeslm.agent import sparkplug
from edgeslm.agent.sparkplug import MAX_METRICS, DataType, Metric, Payload
from edgeslm.errors import CodecError, TopicError

GOLDEN = Path(__file__).parents[1] / "golden" / "sparkplug"
RECORDED = [
    {"by": path.stem, **one}
    for path in sorted(GOLDEN.glob("*.json"))
    for one in json.loads(path.read_text("utf-8"))
]
NOT_WRITTEN = {DataType.INT8, DataType.INT16}

_RANGES = {
    DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1),
    DataType.UINT8: (0, 2**8 - 1),
    DataType.UINT16: (0, 2**16 - 1),
    DataType.UINT32: (0, 2**32 - 1),
    DataType.UINT64: (0, 2**64 - 1),
    DataType.DATETIME: (0, 2**64 - 1),
}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TYPED = st.one_of(
    *(st.tuples(st.just(kind), st.integers(*span)) for kind, span in _RANGES.items()),
    st.tuples(st.just(DataType.BOOLEAN), st.booleans()),
    st.tuples(st.just(DataType.DOUBLE), st.floats(allow_nan=False)),
    st.tuples(st.just(DataType.FLOAT), st.floats(allow_nan=False, width=32)),
    st.tuples(st.sampled_from([DataType.STRING, DataType.TEXT, DataType.UUID]), _TEXT),
    st.tuples(st.sampled_from(list(DataType)), st.none()),
)
_METRICS = st.builds(
    lambda name, typed, alias, at: Metric(name, typed[1], typed[0], alias, at),
    st.none() | _TEXT,
    _TYPED,
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**63),
)
_PAYLOADS = st.builds(
    Payload,
    st.none() | st.integers(0, 2**63),
    st.lists(_METRICS, max_size=4).map(tuple),
    st.none() | st.integers(0, 255),
)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: f"{one['by']}-{one['kind']}")
def test_reads_what_other_implementations_write(recorded):
    expected = [(one["name"], DataType[one["datatype"]], one["value"]) for one in recorded["metrics"]]
    payload = sparkplug.decode(bytes.fromhex(recorded["hex"]))
    assert [(one.name, one.datatype, one.value) for one in payload.metrics] == expected
    assert (payload.seq, payload.timestamp_ms) == (recorded["seq"], recorded["timestamp_ms"])


@pytest.mark.parametrize("recorded", RECORDED[:4], ids=lambda one: f"{one['by']}-{one['kind']}")
def test_writes_the_bytes_that_another_implementation_writes(recorded):
    """But for the types about which implementations disagree: each metric that both write alike, byte by byte."""
    for metric in sparkplug.decode(bytes.fromhex(recorded["hex"])).metrics:
        if metric.datatype not in {*NOT_WRITTEN, DataType.UINT32}:
            assert sparkplug.encode(Payload(None, (metric,))).hex() in recorded["hex"], metric.name


@given(payload=_PAYLOADS)
def test_what_is_encoded_decodes_to_the_same(payload):
    assert sparkplug.decode(sparkplug.encode(payload)) == payload


@given(body=st.binary(max_size=60))
@example(b"\xff" * 11)
@example(b"\x12\xff\xff\xff\xff\x0f")
@example(b"\x0b\x0c")
def test_any_bytes_are_a_payload_or_a_codec_error(body):
    with contextlib.suppress(CodecError):
        sparkplug.decode(body)


@given(payload=_PAYLOADS, at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_payload_with_a_byte_changed_is_a_payload_or_a_codec_error(payload, at, change):
    body = bytearray(sparkplug.encode(payload))
    if body:
        body[int(at * len(body))] ^= change
        test_any_bytes_are_a_payload_or_a_codec_error.hypothesis.inner_test(bytes(body))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DataType.INT8, -5),
        (DataType.INT16, 5),
        (DataType.INT32, 2**31),
        (DataType.UINT8, -1),
        (DataType.UINT64, 2**64),
        (DataType.STRING, 1),
        (DataType.BOOLEAN, 1),
        (DataType.INT32, True),
        (DataType.INT32, 1.5),
        (DataType.FLOAT, 1e300),
        (DataType.DOUBLE, 10**400),
        (DataType.STRING, "\ud800"),
        (DataType.TEMPLATE, 1),
        (DataType.UNKNOWN, 1),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_named(kind, value):
    with pytest.raises(CodecError):
        sparkplug.encode(Payload(0, (Metric("m", value, kind),)))


def test_what_is_not_understood_keeps_its_name_and_loses_its_value():
    template = b"\x0a\x01t" + b"\x20\x13" + b"\x8a\x01\x02\x0a\x00"  # field 17, a data set, of type Template
    payload = sparkplug.decode(b"\x12" + bytes([len(template)]) + template)
    assert payload.metrics == (Metric("t", None, DataType.TEMPLATE),)


def test_refuses_more_metrics_than_it_takes():
    many = sparkplug.encode(Payload(None, (Metric("m", None),) * MAX_METRICS))
    assert len(sparkplug.decode(many).metrics) == MAX_METRICS
    with pytest.raises(CodecError, match="more than"):
        sparkplug.decode(many + sparkplug.encode(Payload(None, (Metric("m", None),))))


def test_refuses_a_payload_that_is_too_long():
    with pytest.raises(CodecError, match="at most"):
        sparkplug.decode(b"\x08\x01" * sparkplug.MAX_PAYLOAD_BYTES)


@given(group=_TEXT, node=_TEXT, verb=st.sampled_from(["NBIRTH", "NDEATH", "NDATA", "NCMD"]))
def test_topics_build_and_parse_inversely(group, node, verb):
    try:
        built = sparkplug.topic(group, verb, node)
    except TopicError:
        assert not group or not node or set(group + node) & set("/+#\x00")
        return
    assert sparkplug.parse_topic(built) == (group, verb, node)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spBv1.0",
        "spBv1.0/g/NDATA",
        "spBv1.0/g/DDATA/n",
        "spAv1.0/g/NDATA/n",
        "spBv1.0/g/NDATA/n/d",
        "spBv1.0//NDATA/n",
    ],
)
def test_refuses_topics_of_others(text):
    with pytest.raises(TopicError):
        sparkplug.parse_topic(text)
