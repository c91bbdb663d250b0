"""Every pack of rules in examples/peers, over messages in the form in which its peers send them.

A log `tests/golden/traffic/<pack>.jsonl` is what the broker carried; `<pack>.answers.jsonl` what home-command said to
the prompts in it; `<pack>.expected.jsonl` the firings that have to come of it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from edgeslm.agent.rules.decisions import Heard, Moment
from edgeslm.agent.rules.engine import Engine
from edgeslm.agent.rules.loading import load_rules
from edgeslm.agent.rules.replay import payload_of, read_answers, read_log, recorded_result, replay
from edgeslm.cli.wiring_rules import model_answers
from edgeslm.schema.message import PromptRequest
from edgeslm.schema.rule_trace import FiringTrace

ROOT = Path(__file__).parents[2]
TRAFFIC = ROOT / "tests" / "golden" / "traffic"
PACKS = sorted((ROOT / "examples" / "peers").glob("*.yaml"))
AFTERWARDS_S = 900.0

FAULTS = {
    "zigbee2mqtt": {"motion", "lux", "battery"},  # an empty body, and bytes that are no text
    "tasmota": {"power_w", "told"},  # null, a meter that says 65535 W, and results of other commands
    "esphome": {"humidity"},  # "nan" before the first value, and more than all the water that air holds
    "shelly-gen2": {"pressed", "was_on", "refused"},  # what changed is told alone
    "json-sensors": {"fridge_c", "volts"},  # a number in quotes, NaN, a broken probe, no JSON
}
"""Inputs that meet messages without a value for them, or with one that cannot be."""


def _firings(pack: Path) -> list[FiringTrace]:
    recorded = TRAFFIC / f"{pack.stem}.answers.jsonl"
    answers = read_answers(recorded) if recorded.exists() else {}
    log = read_log(TRAFFIC / f"{pack.stem}.jsonl")
    return list(
        replay(
            load_rules([pack]),
            log,
            lambda request, _: recorded_result(request, answers[request.prompt]),
            until_s=AFTERWARDS_S,
        )
    )


def _told(firing: FiringTrace) -> dict:
    return firing.model_dump(
        mode="json", include={"at", "rule", "outcome", "detail", "prompt", "actions"}, exclude_defaults=True
    )


@pytest.fixture(params=PACKS, ids=lambda path: path.stem)
def pack(request) -> Path:
    return request.param


def test_there_is_a_pack_with_traffic_for_every_peer():
    names = {pack.stem for pack in PACKS}
    assert names == {"zigbee2mqtt", "tasmota", "esphome", "shelly-gen2", "json-sensors"}
    kinds = Counter(path.name.split(".")[0] for path in TRAFFIC.iterdir())
    assert names == {name for name, files in kinds.items() if files >= 2}


def test_the_firings_are_the_expected_ones(pack):
    expected = (TRAFFIC / f"{pack.stem}.expected.jsonl").read_text("utf-8").splitlines()
    assert [_told(firing) for firing in _firings(pack)] == [json.loads(line) for line in expected]


def test_every_rule_acts_in_the_log(pack):
    acted = {firing.rule for firing in _firings(pack) if firing.outcome == "acted"}
    assert acted == set(load_rules([pack]).rules)


def test_every_input_is_read_and_what_cannot_be_is_counted_as_a_fault(pack):
    messages = list(read_log(TRAFFIC / f"{pack.stem}.jsonl"))
    engine = Engine(load_rules([pack]), Moment(0.0, messages[0].wall_s), lambda rule: rule)
    for message in messages:
        now = Moment(message.at_s, message.wall_s)
        engine.hear(Heard(message.topic, payload_of(message), message.retain), now)
    statuses = engine.input_statuses(Moment(messages[-1].at_s, messages[-1].wall_s))
    assert [one.name for one in statuses if not one.readings] == []
    assert {one.name for one in statuses if one.faults} == FAULTS[pack.stem]


def test_a_pack_publishes_only_commands_of_its_peer(pack):
    """What a device hears as an order, never what it says of itself."""
    sent = {action.to for firing in _firings(pack) for action in firing.actions if action.kind == "publish"}
    orders = ("/set", "/bridge/request/", "cmnd/", "/command", "/rpc", "house/alarms/")
    assert sent
    assert all(any(part in topic for part in orders) for topic in sent)


def test_packs_run_beside_each_other():
    both = load_rules(PACKS)
    assert len(both.rules) == sum(len(load_rules([pack]).rules) for pack in PACKS)


def test_the_recorded_answers_are_what_home_command_says():
    answers = read_answers(TRAFFIC / "zigbee2mqtt.answers.jsonl")
    ask = model_answers("builtin:home-command")
    for number, (prompt, answer) in enumerate(answers.items()):
        result = ask(PromptRequest(id=f"p-{number}", prompt=prompt), "light-by-word")
        assert result.text is not None
        assert json.loads(result.text) == json.loads(answer)
