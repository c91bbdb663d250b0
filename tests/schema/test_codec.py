from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from edgeslm import codec
from edgeslm.errors import CodecError
from edgeslm.schema.message import (
    MAX_BODY_BYTES,
    MAX_PROMPT_CHARS,
    Availability,
    CancelRequest,
    ErrorBody,
    Info,
    ModelInfo,
    Options,
    PromptRequest,
    Receipt,
    Result,
    StreamDelta,
)
from edgeslm.schema.tensor import TensorBytes

KINDS: list[type[BaseModel]] = [
    PromptRequest,
    CancelRequest,
    Receipt,
    Result,
    StreamDelta,
    Availability,
    Info,
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
counts = st.integers(0, 10**9)
amounts = st.floats(0, 1e12)
request_ids = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
identifiers = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
tasks = st.sampled_from(["generate", "classify", "embed", "tensor"])
number_lists = st.lists(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**31), 2**31), max_size=5
)
tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    number_lists
    | st.lists(number_lists, max_size=3)
    | st.builds(
        TensorBytes,
        dtype=st.sampled_from(["int8", "float32"]),
        shape=st.lists(st.integers(0, 9), max_size=8).map(tuple),
        data=st.from_regex(r"[A-Za-z0-9+/]{0,40}", fullmatch=True),
    ),
    min_size=1,
    max_size=4,
)
meters = st.sampled_from(["measured", "calibrated", "estimated"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

options = st.builds(
    Options,
    max_tokens=st.none() | st.integers(1, 8192),
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 1_000_000),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128), max_size=16
    ).map(tuple),
    stream=st.booleans(),
    deadline_ms=st.none() | st.integers(1, 86_400_000),
    priority=st.sampled_from(["high", "normal", "low"]),
)
requests = st.builds(
    PromptRequest,
    id=request_ids,
    task=st.sampled_from(["generate", "classify", "embed"]),
    model=st.none() | identifiers,
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    options=options,
)
receipts = st.builds(
    Receipt,
    prompt_tokens=counts,
    completion_tokens=counts,
    cached_tokens=counts,
    queue_ms=amounts,
    ttft_ms=st.none() | amounts,
    total_ms=amounts,
    prefill_tps=st.none() | amounts,
    decode_tps=st.none() | amounts,
    energy_j=amounts,
    energy_net_j=amounts,
    power_w=amounts,
    meter=meters,
    model=texts,
    model_sha256=texts,
    runtime=texts,
)
RECEIPT = Receipt(
    prompt_tokens=1,
    completion_tokens=1,
    queue_ms=0.0,
    total_ms=1.0,
    energy_j=1.0,
    energy_net_j=0.5,
    power_w=2.0,
    meter="estimated",
    model="m 1.0.0",
    model_sha256="0" * 64,
    runtime="none",
)
answers = st.builds(
    Result,
    id=request_ids,
    device=identifiers,
    text=st.none() | texts,
    json=st.none() | st.dictionaries(texts, json_values, max_size=5),
    finish_reason=st.sampled_from(["stop", "length", "schema", "deadline", "cancelled", "budget"]),
    receipt=receipts,
)
errors = st.builds(
    ErrorBody,
    code=st.sampled_from(["bad_request", "busy", "internal"]),
    message=texts,
    retry_after_s=st.none() | amounts,
)
refusals = st.builds(Result, id=request_ids, device=identifiers, error=errors)
deltas = st.builds(StreamDelta, id=request_ids, seq=counts, text=texts)
infos = st.builds(
    Info,
    device=identifiers,
    agent=texts,
    python=texts,
    runtime=texts,
    board=identifiers,
    tasks=st.lists(tasks, max_size=4).map(tuple),
    models=st.lists(
        st.builds(
            ModelInfo,
            name=identifiers,
            version=texts,
            sha256=texts,
            task=tasks,
            context_tokens=counts,
            graph=texts,
        ),
        max_size=3,
    ).map(tuple),
    meter=meters,
    max_queue=counts,
    max_body_bytes=counts,
    started_at=texts,
)


array_requests = st.builds(
    PromptRequest, id=request_ids, task=st.sampled_from(["tensor", "classify", "embed"]), tensor=tensors
)


@given(st.one_of(requests, array_requests, receipts, answers, refusals, deltas, infos))
def test_what_is_encoded_decodes_back(message: BaseModel) -> None:
    body = codec.encode(message)
    assert codec.decode(type(message), body) == message
    assert codec.decode(type(message), body, max_bytes=len(body)) == message


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "prompt is missing or empty"),
        ({"prompt": ""}, "prompt is missing or empty"),
        ({"task": "embed"}, "prompt is missing or empty"),
        ({"task": "tensor", "prompt": "hi"}, "needs arrays"),
        ({"prompt": "hi", "task": "classify", "tensor": {"x": [1]}}, "contradict"),
        ({"tensor": {"x": [1]}}, "arrays go with task 'tensor'"),
        ({"task": "tensor", "tensor": {}}, "at least 1 item"),
        ({"task": "tensor", "tensor": {"x": "1"}}, "tensor.x"),
        ({"task": "tensor", "tensor": {"x": {"dtype": "complex64", "shape": [], "data": ""}}}, "dtype"),
        ({"task": "tensor", "tensor": {"x": {"dtype": "int8", "shape": [1] * 9, "data": ""}}}, "shape"),
        ({"task": "tensor", "tensor": {str(n): [1] for n in range(33)}}, "at most 32"),
        ({"task": "embed", "prompt": "hi", "choices": ["a"]}, "means nothing to task 'embed'"),
        ({"task": "classify", "prompt": "hi", "regex": "a"}, "means nothing to task 'classify'"),
    ],
)
def test_a_request_asks_one_thing_in_one_way(fields: dict[str, object], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        codec.decode(PromptRequest, json.dumps({"id": "a", **fields}).encode())


@given(requests)
def test_options_beside_the_prompt_and_under_their_own_name_are_one_message(request: PromptRequest) -> None:
    flat = json.loads(codec.encode(request))
    flat |= flat.pop("options")
    assert codec.decode(PromptRequest, json.dumps(flat).encode()) == request


@given(
    st.one_of(requests, answers, deltas, infos),
    st.dictionaries(st.from_regex(r"x_[a-z]+", fullmatch=True), json_values),
)
def test_fields_of_a_later_version_are_ignored(message: BaseModel, more: dict[str, Any]) -> None:
    body = json.dumps({**json.loads(codec.encode(message)), **more}).encode()
    assert codec.decode(type(message), body) == message


def test_nulls_in_an_answers_data_are_kept() -> None:
    result = Result(id="r", device="d", json={"a": None, "b": [None, {"c": None}]}, receipt=RECEIPT)
    assert codec.decode(Result, codec.encode(result)).data == {"a": None, "b": [None, {"c": None}]}


def _decodes_or_refuses(body: bytes) -> None:
    told = []
    for kind in KINDS:
        try:
            codec.decode(kind, body, max_bytes=MAX_BODY_BYTES)
        except CodecError as error:
            told.append(str(error))
    try:
        codec.decode_text(body)
    except CodecError as error:
        told.append(str(error))
    assert all(len(text) < 700 for text in told)


@given(st.binary(max_size=300))
def test_hostile_bytes_only_ever_raise_a_codec_error(body: bytes) -> None:
    _decodes_or_refuses(body)


@given(json_values.map(lambda value: json.dumps(value).encode()))
def test_any_json_only_ever_raises_a_codec_error(body: bytes) -> None:
    _decodes_or_refuses(body)


FIELDS = [
    "v",
    "id",
    "prompt",
    "options",
    "stop",
    "seed",
    "temperature",
    "json",
    "receipt",
    "error",
    "models",
    "tasks",
]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_values_in_known_fields_only_ever_raise_a_codec_error(fields: dict[str, Any]) -> None:
    _decodes_or_refuses(json.dumps(fields).encode())


@given(st.one_of(requests, answers, infos), st.data())
def test_damaged_messages_only_ever_raise_a_codec_error(message: BaseModel, data: st.DataObject) -> None:
    body = bytearray(codec.encode(message))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    _decodes_or_refuses(bytes(body))
    _decodes_or_refuses(bytes(body[:at]))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"options":' * 50_000,
        b'{"id":"r","prompt":"x","seed":' + b"9" * 100_000 + b"}",
        b'{"id":"r","prompt":"x","temperature":NaN}',
        b'{"id":"r","prompt":"x","temperature":1e999}',
        b'{"id":"r","prompt":"\\ud800"}',
        b'{"id":"r\\n","prompt":"x"}',
        b'{"id":"r","prompt":"x","v":2}',
        b"\xff\xfe{}",
        b"",
        b"null",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_known_attacks_are_refused(body: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(PromptRequest, body)
    _decodes_or_refuses(body)


def test_a_body_above_the_limit_is_refused_unread() -> None:
    body = codec.encode(PromptRequest(id="r", prompt="x"))
    with pytest.raises(CodecError, match=f"{len(body)} bytes"):
        codec.decode(PromptRequest, body, max_bytes=len(body) - 1)


def test_a_text_prompt_is_utf8_not_empty_and_bounded() -> None:
    assert codec.decode_text(" grüße 🦊\n".encode()) == "grüße 🦊"
    for body in (b"", b" \n\t", b"\xff", b"x" * (MAX_PROMPT_CHARS + 1)):
        with pytest.raises(CodecError):
            codec.decode_text(body)
