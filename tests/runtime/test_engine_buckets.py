"""A small random network in the form of Gemma, computed for real: growing, rings, several tokens at once, states."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from benchmarks.gemma.flatgraph import ModelWriter, schema
from benchmarks.gemma.network import add_signature
from edgeslm.errors import InferenceError
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor, SignatureExecutor, has_compiled_model
from edgeslm.runtime.prefix_cache import KeptStates, PrefixCache, decode_state, encode_state
from tests.runtime.small_gemma import CONTEXTS, LIMIT, RING, SHAPE, step_by_step, tokens, weights


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    if not has_compiled_model(choose_runtime()):
        pytest.skip("this runtime has no CompiledModel")
    folder = tmp_path_factory.mktemp("graphs")
    network = weights()
    bucketed, whole = ModelWriter(), ModelWriter()
    for context in CONTEXTS:
        behind = "" if context == max(CONTEXTS) else f"_{context}"
        for name, count, logits in (("decode", 1, True), ("prefill_8", 8, False), ("verify_4", 4, True)):
            add_signature(
                bucketed, network, name + behind, count=count, context=context, ring=RING, logits=logits
            )
    add_signature(whole, network, "decode", count=1, context=64, ring=64, logits=True)
    bucketed.write(folder / "bucketed.tflite")
    whole.write(folder / "whole.tflite")
    return folder


@pytest.fixture
def engine(graphs):
    return KvEngine(CompiledExecutor(graphs / "bucketed.tflite", 1, None))


@pytest.fixture
def whole(graphs):
    """One token at a time, at the longest context, no rings: slow, and nothing that could be wrong."""
    return KvEngine(CompiledExecutor(graphs / "whole.tflite", 1, None))


def test_the_cache_grows_with_what_is_in_it_and_computes_the_same(engine, whole):
    ids = tokens(64)
    assert engine.allocated_tokens == 16
    np.testing.assert_allclose(step_by_step(engine, ids), step_by_step(whole, ids), atol=LIMIT)
    assert engine.allocated_tokens == engine.context_tokens == 64


@pytest.mark.parametrize("count", [5, 16, 17, 31, 45, 60])
def test_prompts_computed_in_chunks_give_the_logits_of_single_steps(engine, whole, count):
    ids = tokens(count, seed=count)
    np.testing.assert_allclose(engine.append(ids), step_by_step(whole, ids)[-1], atol=LIMIT)
    assert engine.position == count


def test_an_empty_cache_shrinks_again(engine):
    engine.append(tokens(40))
    engine.reset()
    engine.append(tokens(5))
    assert engine.allocated_tokens == 16


@pytest.mark.parametrize("start", [3, 14, 30, 44])
def test_several_tokens_at_once_give_the_logits_after_each(engine, whole, start):
    ids = tokens(start + 4, seed=start)
    engine.prefill(ids[:start])
    rows = engine.verify(ids[start:])
    np.testing.assert_allclose(rows, step_by_step(whole, ids)[start:], atol=LIMIT)
    engine.rewind(start + 1)
    again = engine.step(ids[start + 1])
    np.testing.assert_allclose(again, rows[1], atol=LIMIT)


def test_more_tokens_than_the_graph_takes_at_once_are_not_verified(engine):
    assert engine.verify_limit == 4
    assert engine.verify(tokens(5)) is None
    assert engine.position == 0


def test_a_sequence_is_not_taken_up_where_a_ring_has_lost_it(engine):
    ids = tokens(40)
    engine.append(ids)
    with pytest.raises(InferenceError, match="no longer holds"):
        engine.rewind(10)
    assert engine.position == 40
    assert engine.resume(ids[:20] + tokens(4, seed=9)) == 0
    assert engine.position == 0


def test_what_two_prompts_have_in_common_is_kept(engine, whole):
    ids, other = tokens(19), [*tokens(17), 3, 7, 5]
    engine.append(ids)
    assert engine.resume(other) == 17
    np.testing.assert_allclose(engine.append(other[17:]), step_by_step(whole, other)[-1], atol=LIMIT)


@pytest.mark.parametrize("count", [6, 20, 50])
def test_a_state_is_taken_up_by_another_engine_and_through_bytes(graphs, engine, count):
    ids, more = tokens(count), tokens(6, seed=2)
    engine.prefill(ids)
    state = engine.export_state()
    expected = step_by_step(engine, more)
    second = KvEngine(CompiledExecutor(graphs / "bucketed.tflite", 1, None))
    second.append(tokens(55, seed=3))
    second.import_state(decode_state(encode_state(state)))
    assert second.position == count
    np.testing.assert_allclose(step_by_step(second, more), expected, atol=LIMIT)


def test_the_signature_runner_computes_the_same_at_the_longest_context(graphs, whole):
    runner = KvEngine(SignatureExecutor(graphs / "bucketed.tflite", choose_runtime(), 1))
    assert runner.allocated_tokens == runner.context_tokens == 64
    ids = tokens(30)
    np.testing.assert_allclose(runner.append(ids), step_by_step(whole, ids)[-1], atol=LIMIT)


def prompts_with(prefix, count):
    return [[*prefix, *tokens(5, seed=100 + number)] for number in range(count)]


def test_prompts_that_begin_alike_are_computed_from_where_they_differ(engine, whole):
    cache = PrefixCache("m")
    prefix = tokens(36)
    found = []
    for ids in prompts_with(prefix, 3):
        engine.reset()
        found.append(cache.prefill(engine, ids))
        logits = engine.step(ids[-1])
        whole.reset()
        np.testing.assert_allclose(logits, step_by_step(whole, ids)[-1], atol=LIMIT)
    # The second shows what they share, the third has it.
    assert found == [0, 0, 36]


def test_the_least_recently_used_state_goes_first_and_the_limit_holds(engine):
    engine.prefill(tokens(40))
    size = engine.export_state().size_bytes
    states = KeptStates(2 * size)
    cache = PrefixCache("m", states)
    for seed in (1, 2):
        engine.reset()
        engine.prefill(tokens(40, seed))
        cache.put(engine.export_state())
    assert cache.longest([*tokens(40, 1), 5]) is not None
    engine.reset()
    engine.prefill(tokens(40, 3))
    cache.put(engine.export_state())
    assert [cache.longest([*tokens(40, seed), 5]) is not None for seed in (1, 2, 3)] == [True, False, True]
    assert states.size_bytes <= 2 * size


def say(cache, engine, before, prompt, answer):
    """A turn of a conversation: what was computed, and how much of it was known."""
    ids = [*before, *prompt]
    known = cache.beginning_with((), has_turns=bool(before)).prefill(engine, ids)
    for token in [ids[-1], *answer[:-1]]:
        logits = engine.step(token)
    cache.follow(engine, [*ids, *answer])
    return [*ids, *answer], known, logits.copy()


def test_two_conversations_in_turn_are_each_taken_up_where_they_were(engine, whole):
    cache = PrefixCache("m", KeptStates())
    first, second, known = [], [], []
    for turn in range(3):
        for at, said in enumerate((first, second)):
            prompt, answer = tokens(34 if turn == 0 else 3, 10 * turn + at), tokens(4, 50 + 10 * turn + at)
            said[:], found, logits = say(cache, engine, list(said), prompt, answer)
            known.append(found)
            whole.reset()
            np.testing.assert_allclose(logits, step_by_step(whole, said[:-1])[-1], atol=LIMIT)
    # Of each turn all is known but the last token of the answer before.
    assert known == [0, 0, 37, 37, 44, 44]


def test_a_conversation_alone_is_not_copied(engine):
    states = KeptStates()
    cache = PrefixCache("m", states)
    said, _, _ = say(cache, engine, [], tokens(36), tokens(4, 2))
    said, known, _ = say(cache, engine, said, tokens(4, 3), tokens(4, 4))
    assert known == 39
    assert len(states) == 0


def test_of_a_conversation_only_the_last_state_is_kept_and_none_of_it_on_disk(engine, tmp_path):
    states = KeptStates()
    cache = PrefixCache("m", states, directory=tmp_path)
    said = []
    for turn in range(3):
        said, _, _ = say(cache, engine, said, tokens(36 if turn == 0 else 3, turn), tokens(3, 20 + turn))
        engine.reset()
        engine.prefill(said[:-1])
        cache.prefill(engine, tokens(40, 90 + turn))
    assert len(states) == 1
    assert cache.longest([*said, 1])[0] == len(said) - 1
    assert list(tmp_path.iterdir()) == []


def test_what_all_prompts_begin_with_is_on_disk_once_though_the_engine_holds_it(engine, tmp_path):
    cache = PrefixCache("m", directory=tmp_path)
    for ids in prompts_with(tokens(36), 4):
        cache.prefill(engine, ids)
        engine.step(ids[-1])
    for ids in prompts_with([*tokens(36), 7], 3):
        cache.prefill(engine, ids)
        engine.step(ids[-1])
    (file,) = tmp_path.iterdir()
    assert file.name.endswith("-36.kv")
    assert PrefixCache("m", directory=tmp_path).longest([*tokens(36), 5])[0] == 36


def test_models_share_one_limit_and_take_no_state_of_each_other(engine):
    engine.prefill(tokens(40))
    state = engine.export_state()
    states = KeptStates(state.size_bytes)
    one, other = PrefixCache("one", states), PrefixCache("other", states)
    one.put(state)
    assert other.longest([*tokens(40), 5]) is None
    other.put(state)
    assert len(states) == 1
    assert one.longest([*tokens(40), 5]) is None


def test_without_memory_nothing_is_kept_and_the_engine_goes_on_all_the_same(engine):
    states = KeptStates(0)
    cache = PrefixCache("m", states)
    said, _, _ = say(cache, engine, [], tokens(36), tokens(4, 2))
    said, known, _ = say(cache, engine, said, tokens(4, 3), tokens(4, 4))
    for ids in prompts_with(tokens(36, 7), 3):
        cache.prefill(engine, ids)
    assert known == 39
    assert len(states) == 0


def test_states_on_disk_survive_a_restart_but_not_another_model_or_damage(engine, tmp_path: Path):
    ids = tokens(40)
    engine.prefill(ids)
    PrefixCache("m", directory=tmp_path).put(engine.export_state())
    asked = [*ids, 5]
    assert PrefixCache("m", directory=tmp_path).longest(asked)[0] == 40
    assert PrefixCache("other", directory=tmp_path).longest(asked) is None
    (file,) = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert PrefixCache("m", directory=tmp_path).longest(asked) is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_and_a_state_that_is_too_large_are_done_without(engine, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    ids = tokens(40)
    engine.prefill(ids)
    cache = PrefixCache("m", KeptStates(10), directory=blocked)
    cache.put(engine.export_state())
    assert cache.longest([*ids, 5]) is None


def test_a_prefill_computes_nothing_of_the_last_layer_but_its_keys_and_values(graphs):
    model = schema.ModelT.InitFromPackedBuf((graphs / "bucketed.tflite").read_bytes())
    kind = schema.BuiltinOperator.FULLY_CONNECTED
    products = {
        graph.name.decode(): sum(
            model.operatorCodes[op.opcodeIndex].builtinCode == kind for op in graph.operators
        )
        for graph in model.subgraphs
    }
    assert products["decode"] == 4 * SHAPE.layers + 1
    assert products["prefill_8"] == 4 * (SHAPE.layers - 1) + 1
