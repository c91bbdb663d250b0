"""Templates for Home Assistant over what a device publishes. Pure.

What always holds: a template keeps to what MQTT lets anybody send. A body that is no JSON, or other JSON than ours,
gives nothing, which leaves a state as it was, or attributes without anything in them; neither is a fault to Home
Assistant.

Sources: home-assistant.io, "Templating", "MQTT sensor" and "MQTT event"; Jinja, "Template Designer Documentation".
"""

from __future__ import annotations

from typing import Final

MAX_STATE_CHARS: Final = 255
"""Home Assistant refuses longer states (``homeassistant.const.MAX_LENGTH_STATE_STATE``)."""
MAX_SHOWN_CHARS: Final = 8000
"""Of an answer in an attribute: past 16 KiB of attributes Home Assistant keeps none of them in its history."""

OURS: Final = "value_json is defined and value_json is mapping"
"""The condition that a body is a JSON object."""
_ANSWER: Final = f"{OURS} and value_json.id is defined and value_json.device is defined"
TEXT: Final = (
    f"{{% if {_ANSWER} %}}"
    "{% set text = ('error: ' ~ value_json.error.message) if value_json.error | default(none) is mapping"
    " else value_json.text | default('', true) %}"
    "{% else %}{% set text = value %}{% endif %}"
)
"""Sets `text` to an answer or an error, which came as JSON or, on ``result/text``, as it is."""


def from_json(expression: str, needs: str = "", otherwise: str = "") -> str:
    """A template for `expression` over JSON of ours.

    Any other body gives `otherwise`; where a state is a number, or on and off, nothing at all keeps it as it was.
    """
    needed = f" and {needs}" if needs else ""
    return f"{{% if {OURS}{needed} %}}{{{{ {expression} }}}}{{% else %}}{otherwise}{{% endif %}}"


def attributes(fields: str) -> str:
    """A template for attributes from JSON of ours; none from any other body, since nothing at all would be a fault."""
    return from_json(f"{{{fields}}} | to_json", otherwise="{}")


def answered(fields: str) -> str:
    """A template that makes an object with `fields` of an answer, whatever form it came in."""
    shown = (
        f"'text': text[:{MAX_SHOWN_CHARS}], 'id': value_json.id, 'json': value_json.json | default(none), "
        "'error_code': (value_json.error | default({}, true)).code | default(none), "
        "'finish_reason': value_json.finish_reason | default(none), "
        "'model': receipt.model | default(none), 'energy_j': receipt.energy_j | default(none), "
        "'tokens_per_s': receipt.decode_tps | default(none), 'total_ms': receipt.total_ms | default(none)"
    )
    plain = f"'text': text[:{MAX_SHOWN_CHARS}]"
    return (
        f"{TEXT}{{% if {_ANSWER} %}}{{% set receipt = value_json.receipt | default({{}}, true) %}}"
        f"{{{{ {{{fields}{shown}}} | to_json }}}}"
        f"{{% else %}}{{{{ {{{fields}{plain}}} | to_json }}}}{{% endif %}}"
    )


PROMPT: Final = (
    "{{ {'v': 1, 'id': 'ha-' ~ (as_timestamp(now()) * 1000) | int ~ '-' ~ range(10000, 100000) | random, "
    "'prompt': value} | to_json }}"
)
"""A prompt of what was typed, under an id of its own; Home Assistant's sandbox makes ranges of 100,000 at most."""
EVENT_TYPE: Final = (
    f"'event_type': 'error' if {OURS} and value_json.error | default(none) is mapping else 'answer', "
)
"""For :func:`answered`: which of the two types of event it is."""
