"""A BERT encoder with mean pooling, in plain torch layers that litert_torch lowers to builtin TFLite operators.

The names of the weights are those that :mod:`edgeslm.forge.sentence_encoder.source` gives. This module depends on
torch alone. Source: Devlin et al. 2019; sentence-transformers' `Pooling`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeslm.forge.sentence_encoder.source import EncoderShape, Weights

_UNSEEN: Final = -1e9
"""Added to the score of padding. Finite, because inf - inf in a softmax is not a number."""


class Layer(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """Attention among all tokens, then a feed-forward part, each added to what went in and normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        self.query, self.key, self.value, self.attended = (
            nn.Linear(shape.width, shape.width) for _ in range(4)
        )
        self.attended_norm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.inner = nn.Linear(shape.width, shape.inner_width)
        self.outer = nn.Linear(shape.inner_width, shape.width)
        self.outer_norm = nn.LayerNorm(shape.width, shape.norm_epsilon)

    def forward(self, x: Tensor, unseen: Tensor) -> Tensor:
        """Apply the layer; `x: (1, tokens, width)`, `unseen: (1, 1, 1, tokens)` is added to scores."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = (query * self.head_width**-0.5) @ key.transpose(-1, -2)
        mixed = torch.softmax(scores + unseen, dim=-1) @ value
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = self.attended_norm(x + self.attended(mixed))
        changed: Tensor = self.outer_norm(x + self.outer(functional.gelu(self.inner(x))))
        return changed

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_width).transpose(1, 2)


class SentenceEncoder(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """Token ids in, one vector out; its length is not one yet, which the device sees to."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Parameter(torch.zeros(shape.max_tokens, shape.width))
        self.norm = nn.LayerNorm(shape.width, shape.norm_epsilon)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode.

        Args:
            input_ids: (1, tokens) int32, padded on the right.
            attention_mask: (1, tokens) int32, 1 where there is a token.

        Returns:
            (1, width) float32, the mean over the tokens.
        """
        mask = attention_mask.to(torch.float32)
        unseen = (1.0 - mask)[:, None, None, :] * _UNSEEN
        x = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, unseen)
        summed: Tensor = (x * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return summed


def build_network(shape: EncoderShape, weights: Weights) -> SentenceEncoder:
    """The network with these weights, ready to compute; each weight has its place, and each place its weight."""
    network = SentenceEncoder(shape)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    network.eval()
    return network
