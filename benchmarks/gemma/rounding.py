"""Weights rounded so that errors make up for each other, on inputs like those that come.

Rounding each weight to its nearest step is best only where the columns of the input have nothing to do with each other.
Here the columns are rounded one after the other, those with the largest inputs first, and what one column's error adds
to the product is taken back by those that are not yet rounded, as far as inputs go together (GPTQ, arXiv:2210.17323,
with its order by activation). Form, size and speed of the graph stay what they are.
"""

from __future__ import annotations

import numpy as np

from benchmarks.gemma.flatgraph import Array, QuantizedMatrix

DAMPING = 0.01
"""Of the mean square of the inputs, that is added to each column's, so that rare inputs decide nothing alone."""
BLOCK_COLUMNS = 64
"""Columns after which an error is carried to all the others at once."""
BLOCK_ROWS = 16_384
"""Rows at a time, for memory's sake."""


def rounded(weights: Array, inputs: Array) -> QuantizedMatrix:
    """`weights`, (rows, columns) float32, for products with rows like `inputs`, (samples, columns) float32."""
    width = weights.shape[1]
    squares = np.matmul(inputs.T, inputs, dtype=np.float64) / len(inputs)
    squares += np.eye(width) * DAMPING * np.trace(squares) / width
    order = np.argsort(-np.diag(squares), kind="stable")
    # Row i tells, over its diagonal, how column i's error is best taken back by each later column.
    shares = np.linalg.cholesky(np.linalg.inv(squares[np.ix_(order, order)])).T.astype(np.float32)
    held = QuantizedMatrix(weights)
    for start in range(0, len(weights), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        held.values[rows, order] = _round_columns(weights[rows, order], held.scales[rows], shares)
    return held


def _round_columns(weights: Array, scales: Array, shares: Array) -> Array:
    """Int8 steps for `weights`, which are changed, from the first column to the last."""
    count, width = weights.shape
    steps = np.empty((width, count), np.int8)
    left = np.ascontiguousarray(weights.T)
    for start in range(0, width, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, width)
        errors = np.empty((end - start, count), np.float32)
        for column in range(start, end):
            steps[column] = np.clip(np.rint(left[column] / scales), -127, 127)
            error = (left[column] - steps[column] * scales) / shares[column, column]
            left[column + 1 : end] -= shares[column, column + 1 : end, None] * error
            errors[column - start] = error
        left[end:] -= shares[start:end, end:].T @ errors
    return steps.T
