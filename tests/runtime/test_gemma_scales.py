"""Scales moved between the weights of the benchmarks' Gemma, and how they are rounded, so that int8 loses less."""

import numpy as np

from benchmarks.gemma.balance import balance, collect, quantized_rows
from benchmarks.gemma.flatgraph import QuantizedMatrix
from benchmarks.gemma.reference import hidden, matrix
from benchmarks.gemma.rounding import rounded
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


def test_rounding_for_inputs_that_go_together_loses_less():
    rng = np.random.default_rng(3)
    mixing = rng.normal(0, 1, (96, 96)) * np.geomspace(1, 0.02, 96)[:, None]
    inputs, others = ((rng.normal(0, 1, (400, 96)) @ mixing).astype(np.float32) for _ in range(2))
    weights = rng.normal(0, 0.1, (200, 96)).astype(np.float32)
    wanted = others @ weights.T

    def lost(held):
        assert held.values.dtype == np.int8
        return np.square(others @ (held.values * held.scales[:, None]).T - wanted).sum()

    nearest, chosen = QuantizedMatrix(weights), rounded(weights, inputs)
    np.testing.assert_array_equal(chosen.scales, nearest.scales)
    assert lost(chosen) < 0.3 * lost(nearest)


def test_a_column_that_is_never_met_and_rows_of_zeros_are_rounded_too():
    inputs = np.random.default_rng(3).normal(0, 1, (50, 8)).astype(np.float32)
    inputs[:, 2] = 0
    weights = np.random.default_rng(4).normal(0, 1, (5, 8)).astype(np.float32)
    weights[1] = 0
    held = rounded(weights, inputs)
    assert not held.values[1].any()
    found = held.values * held.scales[:, None]
    np.testing.assert_allclose(found[:, 2], weights[:, 2], atol=held.scales.max() / 2)
