"""What Home Assistant is told about a device: one message, with templates over what is published anyway. Pure.

Two topics are of Home Assistant's own tree (``<prefix>`` is ``homeassistant`` unless changed)::

    <prefix>/device/<fleet>/<device>/config    retained: the device and all its entities; empty removes them
    <prefix>/status                            Home Assistant's birth and will: online, offline

What always holds:

* No state is published for Home Assistant alone: every entity reads ``availability``, ``info``, ``reported``,
  ``m/...``, ``e/operation`` or ``result/...``.
* Templates keep to what MQTT lets anybody send: a body that is no JSON, or other JSON, leaves the state as it is.
* Orders are remote operations (``cmd/<op>/<id>``). Home Assistant cannot make up a topic, so that the id of the next
  one stands in the discovery message; once it is used a message with another id has to follow
  (:mod:`edgeslm.agent.home.announcing`). Pressed twice before that, a button orders one thing.

Sources: home-assistant.io, "MQTT discovery", sections on device discovery and birth; the platforms' pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from edgeslm import codec, topics
from edgeslm.agent.home.templates import (
    EVENT_TYPE,
    MAX_STATE_CHARS,
    OURS,
    PROMPT,
    TEXT,
    answered,
    attributes,
    from_json,
)
from edgeslm.schema.operation import OperationCommand

Component = dict[str, Any]

CHOOSE_MODEL: Final = "choose-model"
SELF_TEST: Final = "self-test"
RETRY: Final = "retry"
assert {CHOOSE_MODEL, RETRY, SELF_TEST} == {*topics.HOME_ASSISTANT_ORDERS}  # noqa: S101 - a fact about constants
ORDER_LIFE: Final = timedelta(days=30)
"""For the one order whose body is fixed in the message, which has to be sent anew before that."""
PRESS_LIFE_S: Final = 60
"""Nobody wants a self-test an hour after asking for it."""

_EXHAUSTED_SHARE: Final = 0.02
_AVAILABLE_SHARE: Final = 0.10
_J_PER_WH: Final = 3600


@dataclass(frozen=True)
class ShownModel:
    """A model that is served."""

    name: str
    version: str


@dataclass(frozen=True)
class Facts:
    """What a device has to say about itself.

    Attributes:
        board: title of the board, and `board_id` its name.
        agent: version of the agent.
        models: served, the default first.
        updates: names of models that follow releases.
        budget: something restrains what it draws.
        battery: it runs on one.
        order_id: of the next order; never used before.
        now: for orders that carry their time.
    """

    fleet: str
    device: str
    board: str
    board_id: str
    agent: str
    models: Sequence[ShownModel]
    order_id: str
    now: datetime
    updates: Sequence[str] = ()
    budget: bool = False
    battery: bool = False


def discovery_topic(prefix: str, fleet: str, device: str) -> str:
    """Where the discovery message of a device goes."""
    return topics.discovery_topic(fleet, device, prefix)


def birth_topic(prefix: str) -> str:
    """Where Home Assistant says that it has started, or is gone."""
    return topics.birth_topic(prefix)


def is_birth(payload: bytes) -> bool:
    """Whether a body on :func:`birth_topic` says that Home Assistant has started."""
    return payload.strip() == b"online"


def object_id(fleet: str, device: str) -> str:
    """The device in Home Assistant; no two pairs share one, since names have no underscores."""
    return f"edgeslm_{fleet}_{device}"


def discovery_payload(facts: Facts) -> bytes:
    """The discovery message; the same facts give the same bytes."""
    return json.dumps(discovery(facts), ensure_ascii=False, separators=(",", ":")).encode()


def discovery(facts: Facts) -> dict[str, Any]:
    """The discovery message as an object."""
    entities = _Entities(facts)
    return {
        "device": {
            "identifiers": [entities.id],
            "name": facts.device,
            "manufacturer": "edgeslm",
            "model": facts.board,
            "model_id": facts.board_id,
            "sw_version": facts.agent,
        },
        "origin": {"name": "edgeslm", "sw_version": facts.agent},
        "availability": [
            {
                "topic": entities.topic("availability"),
                # Any other word leaves it as it was: a device that sleeps still takes prompts.
                "value_template": from_json("value_json.state | default('')"),
                "payload_available": "online",
                "payload_not_available": "offline",
            }
        ],
        "availability_mode": "all",
        "qos": 1,
        "components": entities.all(),
    }


# --- entities -------------------------------------------------------------------------------------------------


class _Entities:
    """The entities of one device."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.id = object_id(facts.fleet, facts.device)
        self._results = self.topic("result/text").removesuffix("text") + "+"
        self._operations = topics.id_topic(facts.fleet, facts.device, "e", topics.OPERATION_EVENT)

    def topic(self, channel: topics.DeviceChannel) -> str:
        return topics.device_topic(self._facts.fleet, self._facts.device, channel)

    def all(self) -> dict[str, Component]:
        """Every entity by its key, which is part of its unique id and never changes its meaning."""
        facts = self._facts
        found = {**self._talk(), **self._power(), **self._work(), **self._board(), **self._control()}
        for name in facts.updates:
            # A name has dashes, a key of ours has none: they cannot meet.
            found[f"update_{name}"] = self._update(name)
        for key, component in found.items():
            component["unique_id"] = f"{self.id}_{key}"
        return found

    def _talk(self) -> dict[str, Component]:
        prompt = self.topic("prompt")
        return {
            "ask": {
                "platform": "notify",
                "name": "Ask",
                "command_topic": prompt,
                "command_template": PROMPT,
                "icon": "mdi:message-question",
            },
            "prompt": {
                "platform": "text",
                "name": "Prompt",
                "command_topic": prompt,
                "command_template": PROMPT,
                "min": 1,
                "max": MAX_STATE_CHARS,
                "icon": "mdi:form-textbox",
            },
            "answered": {
                "platform": "event",
                "name": "Answered",
                "state_topic": self._results,
                "event_types": ["answer", "error"],
                "value_template": answered(EVENT_TYPE),
                "icon": "mdi:message-reply-text",
            },
            "answer": {
                "platform": "sensor",
                "name": "Last answer",
                "state_topic": self._results,
                "value_template": f"{TEXT}{{{{ text[:{MAX_STATE_CHARS}] }}}}",
                "json_attributes_topic": self._results,
                "json_attributes_template": answered(""),
                "icon": "mdi:message-reply",
            },
        }

    def _power(self) -> dict[str, Component]:
        facts, topic = self._facts, self.topic("m/power")
        found: dict[str, Component] = {
            "power": {
                "platform": "sensor",
                "name": "Power",
                "state_topic": topic,
                "value_template": from_json(
                    "(value_json.energy_j / value_json.span_s) | round(3)",
                    "value_json.span_s | default(0, true) > 0 and value_json.energy_j is number",
                ),
                "json_attributes_topic": topic,
                "json_attributes_template": attributes(
                    "'meter': value_json.meter | default(none), "
                    "'meter_class': value_json.meter_class | default(none), "
                    "'error_share': value_json.error_share | default(none), "
                    "'idle_w': value_json.idle_w | default(none)"
                ),
                "device_class": "power",
                "unit_of_measurement": "W",
                "state_class": "measurement",
                "suggested_display_precision": 2,
            },
            "energy_today": {
                "platform": "sensor",
                "name": "Energy today",
                "state_topic": topic,
                "value_template": from_json(
                    f"(value_json.today_j / {_J_PER_WH}) | round(4)", "value_json.today_j is number"
                ),
                "device_class": "energy",
                "unit_of_measurement": "Wh",
                "state_class": "total_increasing",
                "suggested_display_precision": 2,
            },
        }
        if facts.budget:
            left = "value_json.windows | map(attribute='left_share') | min"
            found["budget_exhausted"] = {
                "platform": "binary_sensor",
                "name": "Budget exhausted",
                "state_topic": topic,
                "value_template": from_json(
                    f"'ON' if ({left}) < {_EXHAUSTED_SHARE} or (this.state == 'on' and ({left}) <= {_AVAILABLE_SHARE})"
                    " else 'OFF'",
                    "value_json.windows | default([], true) | count > 0",
                ),
                "json_attributes_topic": topic,
                "json_attributes_template": attributes("'windows': value_json.windows | default([], true)"),
                "device_class": "problem",
            }
        if facts.battery:
            found["battery"] = {
                "platform": "sensor",
                "name": "Battery",
                "state_topic": topic,
                "value_template": from_json(
                    "(value_json.battery.share * 100) | round(1)",
                    "(value_json.battery | default({}, true)).share is number",
                ),
                "device_class": "battery",
                "unit_of_measurement": "%",
                "state_class": "measurement",
            }
        return found

    def _work(self) -> dict[str, Component]:
        topic = self.topic("m/inference")
        answered = "value_json.models | default([], true) | sum(attribute='answered')"
        # In a span without answers there is nothing to say: the sensor stays at what it was.
        fast = "value_json.models | default([], true) | selectattr('decode_tps') | list"
        return {
            "joules_per_prompt": {
                "platform": "sensor",
                "name": "Energy per prompt",
                "state_topic": topic,
                "value_template": from_json(
                    f"((value_json.models | default([], true) | sum(attribute='energy_j')) / ({answered})) | round(3)",
                    f"({answered}) > 0",
                ),
                # Home Assistant takes the class `energy` for meters that only rise.
                "unit_of_measurement": "J",
                "state_class": "measurement",
                "suggested_display_precision": 2,
                "icon": "mdi:lightning-bolt-circle",
            },
            "tokens_per_s": {
                "platform": "sensor",
                "name": "Tokens per second",
                "state_topic": topic,
                "value_template": from_json(
                    f"(({fast}) | sort(attribute='answered') | last).decode_tps", f"({fast}) | count > 0"
                ),
                "unit_of_measurement": "tok/s",
                "state_class": "measurement",
                "suggested_display_precision": 0,
                "icon": "mdi:speedometer",
            },
            "queue": {
                "platform": "sensor",
                "name": "Waiting prompts",
                "state_topic": topic,
                "value_template": from_json("value_json.waiting", "value_json.waiting is number"),
                "unit_of_measurement": "prompts",
                "state_class": "measurement",
                "icon": "mdi:tray-full",
            },
        }

    def _board(self) -> dict[str, Component]:
        topic = self.topic("m/system")
        return {
            "temperature": {
                "platform": "sensor",
                "name": "Temperature",
                "state_topic": topic,
                "value_template": from_json("value_json.temperature_c", "value_json.temperature_c is number"),
                "device_class": "temperature",
                "unit_of_measurement": "°C",
                "state_class": "measurement",
                "suggested_display_precision": 1,
                "entity_category": "diagnostic",
            },
            "throttled": {
                "platform": "binary_sensor",
                "name": "Throttled",
                "state_topic": topic,
                "value_template": from_json(
                    "'ON' if value_json.throttling else 'OFF'", "value_json.throttling is defined"
                ),
                "json_attributes_topic": topic,
                "json_attributes_template": attributes(
                    "'now': value_json.throttling | default([], true), "
                    "'since_boot': value_json.throttled_before | default([], true)"
                ),
                "device_class": "problem",
                "entity_category": "diagnostic",
            },
            "self_test_result": {
                "platform": "sensor",
                "name": "Self-test",
                "state_topic": self._operations,
                "value_template": from_json(
                    "(value_json.state ~ (': ' ~ value_json.text if value_json.text | default('') else ''))"
                    f"[:{MAX_STATE_CHARS}]",
                    f"value_json.op | default('') == '{SELF_TEST}'",
                    "{{ this.state }}",
                ),
                "json_attributes_topic": self._operations,
                # What is no self-test, or not over, leaves the attributes as they were.
                "json_attributes_template": (
                    f"{{% if {OURS} and value_json.op | default('') == '{SELF_TEST}' "
                    "and value_json.result is defined %}{{ value_json.result | to_json }}"
                    "{% else %}{{ {'checks': this.attributes.checks | default([], true)} | to_json }}{% endif %}"
                ),
                "entity_category": "diagnostic",
                "icon": "mdi:clipboard-check",
            },
        }

    def _control(self) -> dict[str, Component]:
        info = self.topic("info")
        return {
            "self_test": {
                "platform": "button",
                "name": "Run self-test",
                "command_topic": self._order_topic(SELF_TEST),
                "command_template": self._order_template(SELF_TEST, "{}"),
                "entity_category": "diagnostic",
                "icon": "mdi:clipboard-play",
            },
            "model": {
                "platform": "select",
                "name": "Model",
                "command_topic": self._order_topic(CHOOSE_MODEL),
                "command_template": self._order_template(CHOOSE_MODEL, "{'name': value}"),
                "state_topic": info,
                "value_template": from_json(
                    "value_json.models[0].name", "value_json.models | default([], true) | count > 0"
                ),
                "options": [model.name for model in self._facts.models],
                "entity_category": "config",
                "icon": "mdi:brain",
            },
        }

    def _update(self, name: str) -> Component:
        """A model's versions.

        Installing is offered for a release that failed here, and tries it once more: which release a device runs is
        the fleet's decision, which Home Assistant cannot sign.
        """
        state = (
            f"{{% if {OURS} and value_json.models | default([], true) %}}"
            f"{{% set m = value_json.models | selectattr('name', 'eq', '{name}') | list | first | default(none) %}}"
            "{% if m %}{% set c = m.change | default(none) %}{% set here = m.version | default('none') %}"
            "{% set busy = c is not none and not c.settled %}"
            "{% set why = '' if c is none or (c.settled and c.version == here) else (c.state | replace('_', ' ') ~ "
            "(': ' ~ c.waits_for if c.waits_for is defined else ': ' ~ c.fault.detail if c.fault is defined else ''))"
            " %}{{ dict({'installed_version': here, 'latest_version': c.version if c else here, "
            "'in_progress': busy, 'release_summary': why[:255], "
            "'update_percentage': (100 * c.done_bytes / c.total_bytes) | round(0) | int if busy "
            "and c.done_bytes is defined and c.total_bytes | default(0, true) > 0 else none}) | to_json }}"
            "{% endif %}{% endif %}"
        )
        return {
            "platform": "update",
            "name": f"Model {name}",
            "title": name,
            "state_topic": self.topic("reported"),
            "value_template": state,
            "command_topic": self._order_topic(RETRY, f".{name}"),
            "payload_install": self._fixed_order(RETRY, {"name": name}, f".{name}"),
            "entity_category": "config",
        }

    # --- orders -----------------------------------------------------------------------------------------------

    def _order_topic(self, op: str, suffix: str = "") -> str:
        facts = self._facts
        return topics.command_topic(facts.fleet, facts.device, op, facts.order_id + suffix)

    def _order_template(self, op: str, args: str) -> str:
        body = f"'v': 1, 'id': '{self._facts.order_id}', 'op': '{op}', 'args': {args}"
        return (
            f"{{% set at = utcnow() %}}{{{{ {{{body}, 'issued_at': at.isoformat(), "
            f"'expires_at': (at + timedelta(seconds={PRESS_LIFE_S})).isoformat()}} | to_json }}}}"
        )

    def _fixed_order(self, op: str, args: dict[str, Any], suffix: str) -> str:
        now = self._facts.now.astimezone(UTC)
        order = OperationCommand(
            id=self._facts.order_id + suffix, op=op, issued_at=now, expires_at=now + ORDER_LIFE, args=args
        )
        return codec.encode(order).decode()
