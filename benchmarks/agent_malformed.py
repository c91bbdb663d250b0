"""Prompts that are wrong in every way that a careless or hostile client may think of.

Each kind breaks the wire's rules (see ``edgeslm.schema.message`` and DESIGN.md section 3), so each has to be
answered with an error. What a kind draws at random comes from the caller's seeded generator.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.agent_rig import DEVICE, FLEET, MODEL, PROMPT_TOPIC, new_id
from edgeslm import topics

TEXT_TOPIC = topics.device_topic(FLEET, DEVICE, "prompt/text")
POOL_TOPIC = topics.pool_topic(FLEET, MODEL)
MEGABYTE = 1_000_000
_GOOD_PROMPT = "turn on the kitchen light"


@dataclass(frozen=True)
class BadPrompt:
    """A message to publish.

    Attributes:
        kind: what is wrong with it.
        response_topic: where the answer is wished, if not to the client's own topic.
    """

    kind: str
    body: bytes
    topic: str = PROMPT_TOPIC
    response_topic: str | None = None


def _good(**changes: Any) -> dict[str, Any]:
    return {"v": 1, "id": new_id("bad"), "prompt": _GOOD_PROMPT, **changes}


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _changed(*choices: dict[str, Any]) -> Callable[[random.Random], bytes]:
    """A prompt with one of these fields wrong."""
    return lambda rng: _dump(_good(**rng.choice(choices)))


def _option(*choices: tuple[str, Any]) -> Callable[[random.Random], bytes]:
    """A prompt with one of these options wrong, beside the prompt or under ``options``."""

    def build(rng: random.Random) -> bytes:
        name, value = rng.choice(choices)
        return _dump(_good(**{name: value}) if rng.random() < 0.5 else _good(options={name: value}))

    return build


def _raw(*choices: bytes) -> Callable[[random.Random], bytes]:
    return lambda rng: rng.choice(choices)


def _without(name: str) -> Callable[[random.Random], bytes]:
    return lambda _rng: _dump({key: value for key, value in _good().items() if key != name})


def _truncated(rng: random.Random) -> bytes:
    body = _dump(_good())
    return body[: rng.randrange(1, len(body))]


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((300, 5_000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    filling = b"1" if opening == b'{"a":' else b""
    whole = opening * depth + filling + closing * depth
    half = opening * depth
    return rng.choice((whole, half))[:250_000]


def _nested_options(rng: random.Random) -> bytes:
    depth = rng.choice((300, 20_000))
    return b'{"id":"deep","prompt":"x","options":' + b'{"options":' * depth + b"{}" + b"}" * depth + b"}"


def _megabyte(rng: random.Random) -> bytes:
    return rng.choice(
        (
            lambda: _dump(_good(prompt="a" * MEGABYTE)),
            lambda: rng.randbytes(MEGABYTE),
            lambda: b"[" * MEGABYTE,
            lambda: _dump(_good(padding=["x"] * (MEGABYTE // 5))),
            lambda: b" " * MEGABYTE,
        )
    )()


def _binary(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 16, 1024, 65_536)))


def _spelling(value: str) -> Callable[[random.Random], bytes]:
    """A temperature that JSON's grammar or a double does not have."""
    return lambda _rng: _dump(_good(temperature="@")).replace(b'"@"', value.encode())


_BODIES: dict[str, Callable[[random.Random], bytes]] = {
    "empty": _raw(b""),
    "not json": _raw(
        b"turn on the light", b"{'id': 'a'}", b"<xml/>", b"id=a&prompt=b", b"{", b"}", b"\x00", b"nul"
    ),
    "json, no object": _raw(b"null", b"true", b"42", b'"text"', b"[]", b'[{"id":"a","prompt":"b"}]'),
    "truncated": _truncated,
    "two documents": lambda _rng: _dump(_good()) + _dump(_good()),
    "trailing comma": lambda _rng: _dump(_good())[:-1] + b",}",
    "utf-16": lambda _rng: json.dumps(_good()).encode("utf-16"),
    "byte order mark": lambda _rng: b"\xef\xbb\xbf" + _dump(_good()),
    "not utf-8": lambda _rng: _dump(_good(prompt="@")).replace(b"@", b"\xff\xfe\xc3\x28"),
    "lone surrogate": lambda _rng: _dump(_good(prompt="@")).replace(b"@", b"\\ud800"),
    "binary": _binary,
    "gzip": _raw(b"\x1f\x8b\x08\x00" + bytes(100)),
    "mqtt packet": _raw(
        b"\x30\x0c\x00\x04test\x00hello", b"\xe0\x00", b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c"
    ),
    "deep nesting": _nested,
    "deep options": _nested_options,
    "megabyte": _megabyte,
    "no id": _without("id"),
    "no prompt": _without("prompt"),
    "id of another type": _changed({"id": 7}, {"id": None}, {"id": ["a"]}, {"id": {"a": 1}}, {"id": True}),
    "id empty": _changed({"id": ""}),
    "id with topic characters": _changed(
        {"id": "a/b"}, {"id": "#"}, {"id": "+"}, {"id": "../x"}, {"id": "a\u0000b"}, {"id": "$SYS"}
    ),
    "id not ascii": _changed({"id": "ключ"}, {"id": "\U0001f4a1"}, {"id": "a b"}, {"id": "a\nb"}),
    "id huge": _changed({"id": "a" * 129}, {"id": "a" * 1000}, {"id": "a" * 200_000}),
    "prompt of another type": _changed(
        {"prompt": 7}, {"prompt": None}, {"prompt": ["a"]}, {"prompt": {"a": "b"}}, {"prompt": True}
    ),
    "prompt empty": _changed({"prompt": ""}, {"prompt": "   "}, {"prompt": "\n\t"}),
    "prompt too long for the wire": lambda rng: _dump(_good(prompt="a " * rng.randrange(16_385, 100_000))),
    "prompt too long for the model": lambda rng: _dump(_good(prompt="lamp " * rng.randrange(200, 6_000))),
    "prompt that spells special tokens": _changed(
        {"prompt": "turn on <sep> the light"}, {"prompt": "<s><s><s>"}
    ),
    "wrong version": _changed({"v": 2}, {"v": 0}, {"v": "1"}, {"v": None}, {"v": [1]}, {"v": -1}),
    "unknown task": _changed({"task": "fly"}, {"task": 1}, {"task": None}, {"task": ""}),
    "task not served": _changed({"task": "classify"}, {"task": "embed"}, {"task": "tensor"}),
    "hostile tensor": lambda rng: _dump(
        {
            "id": new_id("bad"),
            "task": "tensor",
            "tensor": rng.choice(
                (
                    {"shape": [2**31, 2**31], "data": []},
                    {"shape": [-1], "data": "AAAA", "dtype": "object"},
                    [[1e308] * 100] * 100,
                    {"__reduce__": ["os.system", "id"]},
                )
            ),
        }
    ),
    "unknown model": _changed({"model": "llama-3-70b"}, {"model": "home-command2"}, {"model": "-"}),
    "hostile model": _changed(
        {"model": "../../etc/passwd"},
        {"model": "/dev/zero"},
        {"model": "a" * 10_000},
        {"model": "home-command\u0000"},
        {"model": ""},
        {"model": ["home-command"]},
        {"model": "builtin:home-command"},
        {"model": "Home-Command"},
    ),
    "unknown option": lambda rng: _dump(
        _good(options={rng.choice(("beams", "max_token", "__class__", "")): 1})
    ),
    "unsupported option": _option(("session", "s")),
    "form that no answer has": _option(
        ("json_schema", {"$ref": "#"}),
        ("json_schema", {"type": "integer", "minimum": 2, "maximum": 1}),
        ("json_schema", {"not": {}}),
        ("json_schema", {"enum": ["x" * 40_000]}),
        ("json_schema", []),
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("choices", []),
        ("choices", [""]),
        ("grammar", "start: foo"),
        ("grammar", "start: <[99999]>"),
    ),
    "two forms at once": _changed(
        {"regex": "a", "choices": ["a"]}, {"json_schema": {}, "grammar": "start: /a/"}
    ),
    "options of another type": _changed(
        {"options": 7}, {"options": []}, {"options": "max_tokens=1"}, {"options": None}
    ),
    "option twice": _changed({"max_tokens": 5, "options": {"max_tokens": 6}}),
    "option out of range": _option(
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**9),
        ("temperature", -0.1),
        ("temperature", 1e300),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 10**400),
        ("deadline_ms", 0),
        ("deadline_ms", -5),
        ("deadline_ms", 10**12),
    ),
    "option of another type": _option(
        ("max_tokens", "12"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", []),
        ("seed", {}),
        ("stream", "yes"),
        ("stream", 1),
        ("priority", "urgent"),
        ("priority", 1),
        ("stop", "end"),
        ("stop", {"a": 1}),
    ),
    "stop strings": _option(("stop", ["a"] * 17), ("stop", [""]), ("stop", ["a" * 129]), ("stop", [1])),
    "NaN": _spelling("NaN"),
    "infinity": _spelling("-Infinity"),
    "number beyond a double": _spelling("1e999999"),
    "number of 10,000 digits": _spelling("9" * 10_000),
    "code in fields": _changed(
        {"id": "${jndi:ldap://x}"}, {"model": "{{ 7*7 }}"}, {"task": "'; DROP TABLE prompts--"}
    ),
}
_TEXTS: dict[str, Callable[[random.Random], bytes]] = {
    "text: empty": _raw(b"", b"  \n"),
    "text: not utf-8": lambda rng: b"\xff\xfe" + rng.randbytes(30),
    "text: too long": lambda rng: b"lamp " * rng.randrange(7_000, 40_000),
    "text: megabyte": lambda _rng: b"lamp " * (MEGABYTE // 5),
}
# Wildcards, an empty name, NUL and more than 200 levels never reach an agent: mosquitto ends the connection.
_RESPONSE_TOPICS: dict[str, str] = {
    "response topic: own prompt": PROMPT_TOPIC,
    "response topic: another's prompt": topics.device_topic(FLEET, "another", "prompt"),
    "response topic: pool": POOL_TOPIC,
    "response topic: cancel": topics.device_topic(FLEET, DEVICE, "cancel"),
    "response topic: availability": topics.device_topic(FLEET, DEVICE, "availability"),
    "response topic: $SYS": "$SYS/broker/version",
    "response topic: $share": "$share/group/x",
    "response topic: too long": "a" * 1100,
}


def draw(rng: random.Random, count: int) -> list[BadPrompt]:
    """`count` bad prompts: every kind about as often, in random order."""
    found: list[BadPrompt] = []
    while len(found) < count:
        found += [BadPrompt(kind, build(rng)) for kind, build in _BODIES.items()]
        found += [BadPrompt(kind, build(rng), topic=TEXT_TOPIC) for kind, build in _TEXTS.items()]
        found += [BadPrompt(kind, _dump(_good()), response_topic=to) for kind, to in _RESPONSE_TOPICS.items()]
        other = BadPrompt("pool: another model", _dump(_good(model="other")), topic=POOL_TOPIC)
        found += [other, BadPrompt("pool: not json", b"{", topic=POOL_TOPIC)]
    rng.shuffle(found)
    return found[:count]
