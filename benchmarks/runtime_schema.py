"""Answers held to a schema: how many of many random ones are right, and how many there are a second.

The schemas are drawn, not picked: objects, lists, strings with lengths and patterns, numbers with bounds, enums,
references. Each answer is checked by another library than the one that holds the model to it. Some answers are cut
short on purpose; these have to be right as well.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema_rs

from edgeslm.errors import EdgeslmError
from edgeslm.runtime.model import Answer, LoadedModel
from edgeslm.schema.message import Options

Schema = dict[str, Any]

ANSWERS = 2_000
_NAMES = (
    "name",
    "area",
    "state",
    "brightness",
    "count",
    "unit",
    "note",
    "ok",
    "items",
    "mode",
    "grüße",
    "a b",
)
_WORDS = ("kitchen", "on", "off", "21 °C", "living room", 'error: "none"', "\\", "naïve", "🦊", "")
_PATTERNS = ("^[a-z]+$", "^[A-Z]{2}-[0-9]{3}$", "^(on|off|auto)$", "^[0-9]{4}-[0-9]{2}$", "^#[0-9a-f]{6}$")
_PROMPTS = (
    "turn on the {0}",
    "set the {0} to {1} percent",
    "what is the temperature in the {0}",
    "add {1} {0} to the shopping list",
    "tell me about the {0} in {1} words",
    "{0}",
)
_THINGS = ("kitchen light", "zorvex lamp", "garage door", "pump 14", "küche", "blinds", "milk", "weather")


def draw_schema(rng: random.Random, depth: int = 3) -> Schema:
    """A schema that some JSON follows."""
    kinds = ["string", "string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth > 0:
        kinds += ["object"] * 5 + ["array"] * 2 + ["any"]
    return _draw(rng, rng.choice(kinds), depth)


def draw_object(rng: random.Random, depth: int = 3) -> Schema:
    """A schema for objects, now and then with a definition that refers to itself."""
    schema = _draw(rng, "object", depth)
    if rng.random() < 0.2:
        schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        schema["$defs"] = {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        }
    return schema


def _draw(rng: random.Random, kind: str, depth: int) -> Schema:
    match kind:
        case "object":
            names = rng.sample(_NAMES, rng.randint(1, 4))
            return {
                "type": "object",
                "properties": {name: draw_schema(rng, depth - 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": False,
            }
        case "array":
            least = rng.randint(0, 2)
            return {
                "type": "array",
                "items": draw_schema(rng, depth - 1),
                "minItems": least,
                "maxItems": least + rng.randint(0, 3),
            }
        case "string":
            least = rng.randint(0, 12)
            return rng.choice(
                (
                    {"type": "string"},
                    {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 20)},
                )
            )
        case "integer" | "number":
            low = rng.randint(-1000, 1000)
            bounds = {"minimum": low, "maximum": low + rng.randint(0, 5000)}
            return {"type": kind} | rng.choice(({}, bounds, {"exclusiveMinimum": low}))
        case "enum":
            return {"enum": rng.sample([*_WORDS, 1, 2.5, None, True], rng.randint(1, 5))}
        case "const":
            return {"const": rng.choice([*_WORDS, 7, False])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(_PATTERNS)}
        case "format":
            # Formats on which all validators agree: about leap seconds and the length of mail addresses they do not.
            return {"type": "string", "format": rng.choice(("date", "uuid", "ipv4"))}
        case "any":
            return {"anyOf": [draw_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
        case _:
            return {"type": kind}


def draw_prompt(rng: random.Random) -> str:
    """Something to say."""
    return rng.choice(_PROMPTS).format(rng.choice(_THINGS), rng.randint(0, 100))


def draw_requests(count: int, seed: int) -> Iterator[tuple[str, Options]]:
    """Prompts with options: greedy and sampled ones, whole and cut short; some schemas come more than once."""
    rng = random.Random(seed)
    schemas: list[Schema] = []
    for number in range(count):
        if number % 2 == 0 or not schemas:
            schemas.append(draw_object(rng))
        yield (
            draw_prompt(rng),
            Options(
                json_schema=rng.choice(schemas[-20:]),
                temperature=rng.choice((0.0, 0.0, 0.8, 2.0)),
                seed=number,
                max_tokens=rng.choice((None, None, rng.randint(1, 40))),
                stop=rng.choice(((), (), ("}",), (" the",))),
            ),
        )


def fault_of(answer: Answer, schema: Schema) -> str | None:
    """What is wrong with `answer`, or ``None``."""
    text = answer.generation.text
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}: {text[:80]}"
    if value != answer.data:
        return f"the data is not the text: {text[:80]}"
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    wrong = next(iter(validator.iter_errors(value)), None)
    return None if wrong is None else f"{wrong.message[:120]}: {text[:80]}"


def check(model: LoadedModel, count: int = ANSWERS, seed: int = 1) -> dict[str, Any]:
    """Ask `model` for `count` answers; the share that is right, with what was wrong with others."""
    faults: list[str] = []
    cut = forced = tokens = 0
    busy_s = 0.0
    for prompt, options in draw_requests(count, seed):
        started = time.perf_counter()
        try:
            answer = model.answer(prompt, options)
        except EdgeslmError as error:
            faults.append(f"{type(error).__name__}: {error}")
            continue
        finally:
            busy_s += time.perf_counter() - started
        fault = fault_of(answer, options.json_schema or {})
        if fault is not None:
            faults.append(fault)
        cut += answer.generation.closed is not None
        forced += answer.generation.forced_tokens
        tokens += len(answer.generation.token_ids)
    return {
        "schema_valid": 1 - len(faults) / count,
        "answers": count,
        "answers_cut_short": cut,
        "answers_per_s": round(count / busy_s, 2),
        "tokens_forced": round(forced / max(tokens, 1), 3),
        "faults": faults[:5],
    }


def speed(model: LoadedModel, prompts: Sequence[str], schema: Schema, rounds: int = 1) -> dict[str, float]:
    """Whole greedy answers a second to `prompts` with one `schema`, compiled beforehand as peers do."""
    model.answer(prompts[0], Options(json_schema=schema))
    started = time.perf_counter()
    found = [model.answer(text, Options(json_schema=schema)) for _ in range(rounds) for text in prompts]
    took_s = time.perf_counter() - started
    return {
        "answers_per_s": len(found) / took_s,
        "valid": sum(fault_of(answer, schema) is None for answer in found) / len(found),
        "tokens": sum(len(answer.generation.token_ids) for answer in found) / len(found),
        "tokens_forced": sum(answer.generation.forced_tokens for answer in found) / len(found),
    }


def measure(
    notes: dict[str, str], *, package: str = "builtin:home-command", count: int = ANSWERS, threads: int = 1
) -> dict[str, Any]:
    """``schema_valid`` of the model in `package`, with details under ``schema``.

    Args:
        notes: gets what went wrong, where something did.
        package: file, store reference or ``builtin:`` name.
    """
    from edgeslm.cli import wiring  # noqa: PLC0415
    from edgeslm.runtime.model import load_model  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        installed = wiring.install_package(package, Path(folder))
        found = check(load_model(installed, threads=threads, cache_dir=Path(folder) / "cache"), count)
    if found["faults"]:
        notes["schema_valid"] = "; ".join(found["faults"])
    return {"schema_valid": found["schema_valid"], "schema": found}


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime_schema", description=__doc__)
    parser.add_argument("--package", default="builtin:home-command", help="file or builtin name of the model")
    parser.add_argument("--count", type=int, default=ANSWERS, help="answers to ask for")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    notes: dict[str, str] = {}
    found = measure(notes, package=flags.package, count=flags.count, threads=flags.threads)
    print(json.dumps(found | {"notes": notes}, indent=2, ensure_ascii=False))
    return 0 if found["schema_valid"] == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
