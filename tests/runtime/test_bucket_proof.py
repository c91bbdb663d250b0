"""Each signature computes the golden vector before it computes for anybody, on graphs of which a part is rubbish."""

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from benchmarks.gemma.flatgraph import ModelWriter
from benchmarks.gemma.network import add_signature
from edgeslm.errors import InferenceError, ProofError
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.bucket_proof import BucketProof
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor, SignatureExecutor, has_compiled_model
from edgeslm.schema.package import GraphProof
from tests.runtime.small_gemma import CONTEXTS, LIMIT, RING, step_by_step, tokens, weights

SIGNATURES = (("decode", 1, True), ("prefill_8", 8, False), ("verify_4", 4, True))


@pytest.fixture(scope="module")
def networks():
    return weights(), weights(seed=6)


@pytest.fixture(scope="module")
def write(networks, tmp_path_factory):
    """Writes a graph whose signatures of these names are of another network; each graph once."""
    if not has_compiled_model(choose_runtime()):
        pytest.skip("this runtime has no CompiledModel")
    folder, written = tmp_path_factory.mktemp("graphs"), {}

    def write(*rubbish):
        if rubbish not in written:
            writer = ModelWriter()
            for context in CONTEXTS:
                behind = "" if context == max(CONTEXTS) else f"_{context}"
                for name, count, logits in SIGNATURES:
                    network = networks[name + behind in rubbish]
                    add_signature(
                        writer, network, name + behind, count=count, context=context, ring=RING, logits=logits
                    )
            written[rubbish] = folder / f"{len(written)}.tflite"
            writer.write(written[rubbish])
        return written[rubbish]

    return write


@pytest.fixture(scope="module")
def whole(networks, tmp_path_factory):
    """Single steps at the longest context, no rings, no proof."""
    writer = ModelWriter()
    add_signature(writer, networks[0], "decode", count=1, context=64, ring=64, logits=True)
    path = tmp_path_factory.mktemp("graphs") / "whole.tflite"
    writer.write(path)
    return KvEngine(CompiledExecutor(path, 1, None))


def expected(whole, ids):
    whole.reset()
    return step_by_step(whole, ids)


def golden(whole, count=10):
    ids = tokens(count, seed=4)
    logits = expected(whole, ids)[-1]
    picked = [int(logits.argmax()), *range(0, logits.size, 9)]
    return GraphProof(
        tokens=tuple(ids),
        greedy=(int(logits.argmax()),),
        logit_ids=tuple(picked),
        logits=tuple(float(logits[index]) for index in picked),
        atol=LIMIT,
    )


@pytest.fixture
def open_engine(write, whole):
    def open_engine(*rubbish, count=10):
        proof = BucketProof(golden(whole, count), "graph.tflite")
        return KvEngine(CompiledExecutor(write(*rubbish), 1, None), proof)

    return open_engine


def test_a_sequence_survives_that_contexts_are_proved_while_it_grows(open_engine, whole):
    engine = open_engine()
    engine.prove()
    ids = tokens(64)
    np.testing.assert_allclose(step_by_step(engine, ids), expected(whole, ids), atol=LIMIT)
    assert engine.context_tokens == 64
    engine.reset()
    np.testing.assert_allclose(engine.append(ids[:45]), expected(whole, ids[:45])[-1], atol=LIMIT)


@pytest.mark.parametrize("name", ["decode_16", "prefill_8_16"])
def test_a_graph_that_computes_rubbish_from_the_start_is_refused(open_engine, name):
    with pytest.raises(ProofError, match="golden vector"):
        open_engine(name).prove()


@pytest.mark.parametrize("name", ["decode_32", "prefill_8_32"])
def test_a_context_that_computes_rubbish_is_passed_over(open_engine, whole, name):
    engine = open_engine(name)
    engine.prove()
    ids = tokens(30)
    engine.prefill(ids[:12])
    assert engine.allocated_tokens == 16
    engine.prefill(ids[12:-1])
    assert engine.allocated_tokens == 64
    np.testing.assert_allclose(engine.step(ids[-1]), expected(whole, ids)[-1], atol=LIMIT)


@pytest.mark.parametrize("name", ["decode", "prefill_8"])
def test_the_context_ends_before_one_that_computes_rubbish(open_engine, whole, name):
    engine = open_engine(name)
    engine.prove()
    ids = tokens(40)
    with pytest.raises(InferenceError, match="golden vector"):
        engine.append(ids)
    assert engine.context_tokens == 32
    with pytest.raises(InferenceError, match="context of 32"):
        engine.append(ids)
    engine.reset()
    np.testing.assert_allclose(engine.append(ids[:31]), expected(whole, ids[:31])[-1], atol=LIMIT)


def test_what_is_there_stays_when_a_context_is_refused(open_engine, whole):
    engine = open_engine("decode")
    engine.prove()
    ids = tokens(33)
    engine.prefill(ids[:28])
    with pytest.raises(InferenceError, match="golden vector"):
        engine.prefill(tokens(12, seed=8))
    engine.rewind(28)
    np.testing.assert_allclose(engine.step(ids[28]), expected(whole, ids[:29])[-1], atol=LIMIT)


def test_checking_several_tokens_at_once_is_proved_as_well(open_engine, whole):
    engine = open_engine("verify_4_16")
    engine.prove()
    ids = tokens(9)
    engine.prefill(ids[:5])
    assert engine.allocated_tokens == 16
    np.testing.assert_allclose(engine.verify(ids[5:]), expected(whole, ids)[5:], atol=LIMIT)
    assert engine.allocated_tokens == 32


def test_a_context_that_the_golden_vector_does_not_fit_into_is_not_used(open_engine, whole):
    engine = open_engine("decode_16", count=20)
    engine.prove()
    ids = tokens(5)
    np.testing.assert_allclose(engine.append(ids), expected(whole, ids)[-1], atol=LIMIT)
    assert engine.allocated_tokens == 32
    long = GraphProof(tokens=(1,) * 65, greedy=(1,), logit_ids=(1,), logits=(0.0,), atol=1)
    endless = KvEngine(engine._executor, BucketProof(long, "graph.tflite"))
    with pytest.raises(ProofError, match="takes 65 places"):
        endless.prove()


def test_signature_runners_are_proved_at_the_longest_context(write, whole):
    proof = BucketProof(golden(whole), "graph.tflite")
    KvEngine(SignatureExecutor(write("decode_16", "decode_32"), choose_runtime(), 1), proof).prove()
    with pytest.raises(ProofError, match="golden vector"):
        KvEngine(SignatureExecutor(write("decode"), choose_runtime(), 1), proof).prove()
