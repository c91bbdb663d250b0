"""`edgeslm contract check`: a client's messages held against the contract."""

from __future__ import annotations

import json
import struct

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.cli.contract import contract
from edgeslm.cli.contract_asyncapi import EXAMPLES
from edgeslm.cli.contract_channels import PARAMETERS, channel_of, channels
from edgeslm.cli.contract_check import fault_of
from edgeslm.delivery.blocks import block_message
from edgeslm.schema.message import MAX_BODY_BYTES

OWN = "edgeslm/v1/home/kitchen-pi"


def _log(path, *messages: tuple[str, str | bytes, bool]):
    lines = []
    for topic, body, retain in messages:
        form = {"hex": body.hex()} if isinstance(body, bytes) else {"text": body}
        lines.append(json.dumps({"at_s": 0.0, "wall_s": 1.0, "topic": topic, "retain": retain, **form}))
    path.write_text("\n".join(lines))
    return path


def test_every_channel_is_found_by_its_topic():
    stand_ins = dict.fromkeys(PARAMETERS, "x")
    for channel in channels():
        assert channel_of(channel.address.format(**stand_ins)) == channel


def test_every_example_of_the_contract_passes():
    stand_ins = dict.fromkeys(PARAMETERS, "x")
    for channel in channels():
        for name in channel.messages:
            for _, body in EXAMPLES.get(name, ()):
                assert fault_of(channel.address.format(**stand_ins), json.dumps(body).encode()) is None


@pytest.mark.parametrize(
    ("topic", "body", "told"),
    [
        ("prompt", b'{"id":"q"}', "prompt is missing or empty"),
        ("prompt", b'{"id":"q","prompt":"x","options":{"seeed":1}}', "unknown option: seeed"),
        ("prompt", b"lock the door", "Invalid JSON"),
        ("prompt", b"", "it is empty"),
        ("prompt", b"[" * 5000, "Invalid JSON"),
        ("prompt", b" " * (MAX_BODY_BYTES + 1), "at most"),
        ("prompt/text", b"\xff", "not UTF-8"),
        ("prompts", b"{}", "no topic of the tree"),
        ("cmd/self-test/c-1", b'{"id":"c-1","op":"self-test"}', "issued_at"),
        ("desired", b"{}", "no JSON with 'signed'"),
        ("desired", b"[" * 100_000, "no JSON with 'signed'"),
        ("desired", b'{"signatures":[],"signed":{"fleet":"home"}}', "device"),
        ("blocks/x", b"SLBx1234", "it is none of these: block"),
    ],
)
def test_what_is_wrong_is_named(topic, body, told):
    assert told in (fault_of(f"{OWN}/{topic}", body) or "")


def test_a_retained_order_is_a_fault_and_a_retained_state_is_none():
    body = b'{"id":"q","prompt":"x"}'
    assert fault_of(f"{OWN}/prompt", body) is None
    assert "retained" in (fault_of(f"{OWN}/prompt", body, retain=True) or "")
    assert fault_of(f"{OWN}/availability", b'{"state":"online"}', retain=True) is None
    assert fault_of(f"{OWN}/cmd/restart/c-1", b"") is None


def test_binary_bodies_are_known_by_their_head():
    assert fault_of(f"{OWN}/blocks/{'a' * 64}", block_message(3, b"data")) is None
    assert fault_of(f"{OWN}/blocks/7.root.json", struct.pack("<4sQII", b"SLM1", 1, 0, 9) + b"part") is None


@given(
    channel=st.sampled_from(
        [one.address.rsplit("}/", 1)[-1] for one in channels() if "{" not in one.address[-3:]]
    ),
    body=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps(text).encode()),
)
def test_any_body_is_judged(channel, body):
    fault = fault_of(f"{OWN}/{channel}", body)
    assert fault is None or fault


def test_faults_end_with_code_4_and_others_topics_are_passed_over(tmp_path):
    log = _log(
        tmp_path / "log.jsonl",
        ("zigbee2mqtt/lamp", "{}", False),
        (f"{OWN}/prompt", '{"id":"q","prompt":"x"}', False),
        (f"{OWN}/prompt", '{"id":"q"}', False),
    )
    done = CliRunner().invoke(contract, ["check", str(log)])
    assert done.exit_code == 4
    assert done.stdout == f"3: {OWN}/prompt: prompt is missing or empty\n"
    assert done.stderr == "2 of 3 messages are of edgeslm; 1 with a fault\n"
    told = json.loads(CliRunner().invoke(contract, ["check", str(log), "--json"]).stdout)
    assert (told["messages"], told["checked"], len(told["faults"])) == (3, 2, 1)


def test_a_log_without_faults_ends_with_code_0(tmp_path):
    log = _log(tmp_path / "log.jsonl", (f"{OWN}/prompt/text", "lock the door", False))
    assert CliRunner().invoke(contract, ["check", str(log)]).exit_code == 0


def test_what_is_no_log_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text("hello")
    done = CliRunner().invoke(contract, ["check", str(tmp_path / "log.jsonl")])
    assert done.exit_code == 2
    assert "line 1" in done.output
