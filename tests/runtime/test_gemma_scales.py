"""Scales that are moved between the weights of the benchmarks' Gemma, so that int8 loses less."""

import numpy as np

from benchmarks.gemma.balance import balance, collect, quantized_rows
from benchmarks.gemma.flatgraph import QuantizedMatrix
from benchmarks.gemma.reference import hidden, matrix
from tests.runtime.small_gemma import SHAPE, raw_tensors, tokens


def with_outliers():
    """Two columns of every input that a norm makes are fifty times the others."""
    tensors = raw_tensors()
    for layer in range(SHAPE.layers):
        for name in ("attention_norm", "feed_forward_norm"):
            tensors[f"{layer}.{name}"][[3, 17]] = 50.0
        for name in ("query", "key", "value", "gate", "up"):
            tensors[f"{layer}.{name}"][:, [3, 17]] /= 50.0
    return tensors


def test_the_network_computes_what_it_did():
    tensors = with_outliers()
    done, head_scales = balance(SHAPE, tensors, collect(SHAPE, tensors, [tokens(60)]))
    assert any(np.abs(done[name] - tensors[name]).max() > 0.1 for name in tensors)
    ids = tokens(40, seed=9)
    before = hidden(SHAPE, tensors, ids) @ tensors["embedding"].T
    after = hidden(SHAPE, done, ids) @ (done["embedding"] * head_scales).T
    np.testing.assert_allclose(after, before, atol=2e-3 * np.abs(before).max())
    assert (after.argmax(1) == before.argmax(1)).all()


def test_int8_loses_less():
    tensors = with_outliers()
    done, _ = balance(SHAPE, tensors, collect(SHAPE, tensors, [tokens(60)]))
    ids = tokens(40, seed=9)

    def lost(network):
        inputs = collect(SHAPE, network, [ids])
        errors = []
        for layer in range(SHAPE.layers):
            weights, rows = matrix(network, layer, "qkv"), inputs[f"{layer}.qkv"]
            held = QuantizedMatrix(weights)
            exact, found = rows @ weights.T, quantized_rows(rows) @ (held.values * held.scales[:, None]).T
            errors.append(np.square(found - exact).sum() / np.square(exact).sum())
        return np.mean(errors)

    assert lost(done) < 0.2 * lost(tensors)
