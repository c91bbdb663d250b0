"""How near the vectors of the packed int8 encoder are to the float ones, and whether neighbours make sense.

The float ones are made with the tokenizer's own way of putting tokens around a text, the others with what the package
states: a mistake there shows too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def read_groups() -> list[list[str]]:
    """Groups of sentences that say the same in other words."""
    text = (resources.files(__package__) / "data" / "sentences.txt").read_text("utf-8")
    return [group.splitlines() for group in text.strip().split("\n\n")]


def embed_all(embed: Callable[[str], Sequence[float]], texts: Sequence[str]) -> Vectors:
    """One row of length one for each text."""
    rows = np.array([embed(text) for text in texts], np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def compare(ours: Vectors, floats: Vectors) -> dict[str, float]:
    """Cosines between the two vectors of each text.

    Args:
        ours: (texts, size) float32, rows of length one.
        floats: likewise.
    """
    cosines = (ours * floats).sum(axis=1)
    return {"cosine_min": round(float(cosines.min()), 5), "cosine_mean": round(float(cosines.mean()), 5)}


def neighbours_right(vectors: Vectors, groups: Sequence[int]) -> float:
    """Share of the texts whose nearest other text is of their own group.

    Args:
        vectors: (texts, size) float32, rows of length one.
        groups: number of the group of each text.
    """
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    nearest = near.argmax(axis=1)
    right = [groups[int(index)] == group for index, group in zip(nearest, groups, strict=True)]
    return round(sum(right) / len(right), 4)
