"""Another sequence is computed between two tokens of one, which goes on as if nothing had been."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgeslm.errors import InferenceError
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor, SignatureExecutor, has_compiled_model
from edgeslm.runtime.model import LoadedModel, load_model
from edgeslm.schema.message import FinishReason, Options, PromptRequest

LONG = Options(max_tokens=40, stop=("zzz",))
ASKED = [
    ("turn on the zorvex lamp in the kitchen", LONG),
    ("set the heating in the bathroom to 21 degrees", Options(temperature=0.9, top_k=8, seed=3)),
    ("open the blinds", Options(json_schema={"type": "object", "properties": {"name": {"type": "string"}}})),
    ("close the garage door", Options(choices=("yes please", "no thank you"))),
]
ALARM = "turn off the lights in the hall"


@pytest.fixture(scope="module")
def other(home_command, store_dir) -> LoadedModel:
    """The same package, loaded by itself: what it says nobody interrupts."""
    return load_model(home_command, cache_dir=store_dir / "cache")


@pytest.mark.parametrize(("prompt", "options"), ASKED)
def test_an_answer_interrupted_at_every_token_is_the_one_that_is_not(model, other, prompt, options):
    wanted, alarm = other.answer(prompt, options), other.answer(ALARM, LONG)
    alarms = []
    pieces: list[str] = []

    def should_stop() -> FinishReason | None:
        with model.set_aside():
            alarms.append(model.answer(ALARM, LONG))
        return None

    found = model.answer(prompt, options, should_stop=should_stop, on_text=pieces.append)
    assert found.generation.token_ids == wanted.generation.token_ids
    assert found.generation.text == wanted.generation.text == "".join(pieces)
    assert found.generation.finish_reason == wanted.generation.finish_reason
    assert len(alarms) >= 2
    assert {one.generation.token_ids for one in alarms} == {alarm.generation.token_ids}


def test_what_the_others_took_is_in_no_rate_but_in_the_time_to_the_end(model):
    def should_stop() -> FinishReason | None:
        time.sleep(0.02)
        return None

    made = model.answer("turn on the kitchen lamp", LONG, should_stop=should_stop).generation
    asked_s = 0.02 * (len(made.token_ids) + 1)
    assert made.total_s > asked_s
    assert made.prefill_s + made.decode_s < asked_s
    assert made.first_token_s >= 0.02


def test_a_classification_lets_another_go_first_as_well(model, other):
    request = PromptRequest.model_validate(
        {"id": "a", "task": "classify", "prompt": "turn on the lamp", "choices": ["on", "off", "open"]}
    )
    wanted = other.infer(request)

    def should_stop() -> FinishReason | None:
        with model.set_aside():
            model.answer(ALARM, LONG)
        return None

    assert model.infer(request, should_stop=should_stop).scores == pytest.approx(wanted.scores, abs=1e-6)


def test_an_alarm_that_fails_leaves_the_other_as_it_was(model, other):
    wanted = other.answer(*ASKED[0])

    def fail() -> None:
        with model.set_aside():
            model.engine.prefill([1, 2, 3])
            raise InferenceError("whatever")

    def should_stop() -> FinishReason | None:
        with pytest.raises(InferenceError, match="whatever"):
            fail()
        return None

    found = model.answer(*ASKED[0], should_stop=should_stop)
    assert found.generation.token_ids == wanted.generation.token_ids


def test_an_alarm_is_answered_in_the_midst_of_a_long_prompt(model, other):
    prompt = " and ".join(["turn on the lamp in the kitchen"] * 5)
    wanted = other.answer(prompt, LONG)
    fills: list[int] = []

    def should_stop() -> FinishReason | None:
        fills.append(model.engine.position)
        with model.set_aside():
            assert model.engine.position == 0
            model.answer(ALARM, LONG)
        assert model.engine.position == fills[-1]
        return None

    found = model.answer(prompt, LONG, should_stop=should_stop)
    assert found.generation.token_ids == wanted.generation.token_ids
    assert sum(fill < found.generation.prompt_tokens - 1 for fill in fills) >= 2, "between chunks"


@pytest.mark.parametrize("kind", ["signature", "compiled"])
def test_both_executors_put_the_caches_back(home_command, kind):
    graph = next(g for g in home_command.manifest.graphs if choose_runtime().kind in g.runtimes)
    path = home_command.file(graph.file)
    if kind == "compiled" and not has_compiled_model(choose_runtime()):
        pytest.skip("this runtime has no CompiledModel")
    executor = (
        CompiledExecutor(path, 1, None)
        if kind == "compiled"
        else SignatureExecutor(path, choose_runtime(), 1)
    )
    engine = KvEngine(executor)
    ids = [5, 9, 11, 200, 31, 7, 18, 4]
    engine.reset()
    wanted = [engine.step(token).copy() for token in ids]
    engine.reset()
    found = []
    for token in ids:
        with engine.set_aside():
            other = [engine.step(one).copy() for one in reversed(ids)]
        found.append(engine.step(token).copy())
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(other, wanted)


def test_without_memory_for_a_second_sequence_the_first_goes_on(model, monkeypatch):
    executor = model.engine._executor
    fault = InferenceError("no caches")

    def refuse(signature: str) -> None:
        raise fault

    prompt, options = ASKED[0]
    wanted = model.answer(prompt, options).generation.token_ids
    if not isinstance(executor, CompiledExecutor):
        pytest.skip("caches are plain arrays")
    monkeypatch.setattr(executor, "_fresh_caches", refuse)

    def should_stop() -> FinishReason | None:
        with pytest.raises(InferenceError, match="no caches"), model.set_aside():
            raise AssertionError
        return None

    assert model.answer(prompt, options, should_stop=should_stop).generation.token_ids == wanted


def test_rings_and_longer_contexts_are_what_they_were(tmp_path):
    if not has_compiled_model(choose_runtime()):
        pytest.skip("this runtime has no CompiledModel")
    pytest.importorskip("benchmarks.gemma.flatgraph")
    from benchmarks.gemma.flatgraph import ModelWriter  # noqa: PLC0415
    from benchmarks.gemma.network import add_signature  # noqa: PLC0415
    from tests.runtime.small_gemma import CONTEXTS, RING, tokens, weights  # noqa: PLC0415

    network, writer = weights(), ModelWriter()
    for context in CONTEXTS:
        behind = "" if context == max(CONTEXTS) else f"_{context}"
        for name, count, logits in (("decode", 1, True), ("prefill_8", 8, False), ("verify_4", 4, True)):
            add_signature(
                writer, network, name + behind, count=count, context=context, ring=RING, logits=logits
            )
    writer.write(tmp_path / "rings.tflite")
    alone = KvEngine(CompiledExecutor(tmp_path / "rings.tflite", 1, None))
    shared = KvEngine(CompiledExecutor(tmp_path / "rings.tflite", 1, None))
    ids = tokens(60)

    def compute(engine: KvEngine, pause) -> list[np.ndarray]:
        engine.reset()
        found = []
        for start in range(0, 20, 5):
            pause()
            found.append(engine.append(ids[start : start + 5]).copy())
        for token in ids[20:40]:
            pause()
            found.append(engine.step(token).copy())
        pause()
        found += list(engine.verify(ids[40:44]).copy())
        engine.rewind(42)
        pause()
        found += [engine.step(token).copy() for token in ids[42:60]]
        return found

    counts = iter(range(1, 1000))

    def another() -> None:
        held = shared.allocated_tokens
        with shared.set_aside():
            assert shared.allocated_tokens == min(CONTEXTS)
            shared.append(tokens(next(counts) * 7 % 50 + 1, seed=9))
        assert shared.allocated_tokens == held

    np.testing.assert_array_equal(compute(shared, another), compute(alone, lambda: None))


@pytest.mark.parametrize("asks", [1, 2, 3, 6])
def test_an_answer_that_ended_does_not_touch_the_engine_any_more(model, asks, monkeypatch):
    """Another sequence may be computed with it by then, on another thread."""
    count = 0

    def forbidden(*arguments: object, **more: object) -> None:
        raise AssertionError("the engine was used")

    def should_stop() -> FinishReason | None:
        nonlocal count
        count += 1
        if count < asks:
            return None
        assert count == asks, "it is not asked again"
        for name in ("run", "resize", "read_caches", "write_caches"):
            monkeypatch.setattr(model.engine._executor, name, forbidden)
        return "deadline"

    prompt = " or ".join(["close the window in the attic"] * 5)
    made = model.answer(prompt, LONG, should_stop=should_stop).generation
    assert (made.finish_reason, count) == ("deadline", asks)
    monkeypatch.undo()
    assert model.answer(ALARM, LONG).generation.finish_reason == "stop"
