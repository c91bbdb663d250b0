"""The network of `home-command`: a small decoder that LiteRT's generative layers express exactly.

Pre-norm RMSNorm, rotary positions, normalized queries and keys, a gated SiLU feed-forward, tied embeddings
scaled by sqrt(width), no biases anywhere. Each choice has its twin in `litert_torch.generative`
(`ModelConfig`, `DecoderOnlyModel`), so that conversion is a copy of weights and XNNPACK fuses the layers;
`convert.py` owns that copy. This module depends on torch alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD = 0.04


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The shape of the network; the default has 3.5 M parameters."""

    vocabulary_size: int = 1024
    width: int = 256
    layer_count: int = 5
    head_count: int = 4
    inner_width: int = 512
    context_tokens: int = 160
    rotary_base: int = 10_000
    norm_epsilon: float = 1e-6

    @property
    def head_width(self) -> int:
        """Elements of one head's query, key and value."""
        return self.width // self.head_count

    @property
    def embedding_scale(self) -> float:
        """Factor on the embedding, so that a small tied table still feeds the layers values near one."""
        return math.sqrt(self.width)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NetworkConfig:
        """Return the shape that `to_dict` described."""
        return cls(**fields)


class Attention(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """Causal self-attention with rotary positions; as many key heads as query heads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.head_count = config.head_count
        self.head_width = config.head_width
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.query_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)
        self.key_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Attend; `x: (batch, tokens, width)`, `cosine`, `sine: (tokens, head_width / 2)`."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.head_count, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = rotate(self.query_norm(query), cosine, sine).to(value.dtype)
        key = rotate(self.key_norm(key), cosine, sine).to(value.dtype)
        mixed = _attend_causally(query, key, value)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return output


class FeedForward(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """Gated feed-forward: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.inner_width, bias=False)
        self.up = nn.Linear(config.width, config.inner_width, bias=False)
        self.down = nn.Linear(config.inner_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own; `x: (batch, tokens, width)`."""
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


class Block(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """One layer: attention, then feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Apply the layer; `x: (batch, tokens, width)`."""
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        residual: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return residual


class HomeCommandNetwork(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """The decoder: token ids in, logits of the next token out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layer_count))
        self.final_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        cosine, sine = rotary_tables(config)
        self.cosine: Tensor
        self.sine: Tensor
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, _INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits.

        Args:
            tokens: (batch, tokens) int64, at most `context_tokens` long, padded on the right.

        Returns:
            (batch, tokens, vocabulary_size); what stands after padding is of no use.
        """
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the normalized last layer, (batch, tokens, width)."""
        count = tokens.shape[1]
        cosine, sine = self.cosine[:count], self.sine[:count]
        x: Tensor = self.embedding(tokens) * self.config.embedding_scale
        for block in self.blocks:
            x = block(x, cosine, sine)
        normed: Tensor = self.final_norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states through the tied embedding."""
        return functional.linear(hidden, self.embedding.weight)

    def parameter_count(self) -> int:
        """Return the number of trained values; the tied table counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def rotary_tables(config: NetworkConfig) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every position's angles, each (context_tokens, head_width / 2) float32."""
    half = config.head_width // 2
    timescale = float(config.rotary_base) ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(config.context_tokens, dtype=torch.float32)[:, None] / timescale
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + head_width / 2) by its position's angle, as litert_torch's `apply_rope` does."""
    left, right = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


def _attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to this and earlier tokens; each argument (batch, heads, tokens, head_width).

    Written out because at these lengths (about 25 tokens) torch's fused CPU kernel makes the training step
    1.6 times as long: its backward pass alone was a fifth of the step, and Inductor cannot fuse around it.
    """
    tokens = query.shape[2]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    future = torch.full((tokens, tokens), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return torch.softmax(scores + future, dim=-1) @ value


def generate_greedily(
    network: HomeCommandNetwork, prompts: list[list[int]], end_id: int, max_tokens: int = 96
) -> list[list[int]]:
    """Answer a batch of prompts with the float network.

    The whole sequence is computed anew for each token: slow, but with no cache that could be wrong. This is
    the reference that the converted graphs are compared with.

    Args:
        network: in evaluation mode.
        prompts: token ids of each prompt, `<sep>` last.
        end_id: the token that ends an answer; it is not part of the result.
        max_tokens: longest answer.

    Returns:
        The answers' token ids, in the order of the prompts.
    """
    rows = [list(prompt) for prompt in prompts]
    live = rows
    for _ in range(max_tokens):
        live = [row for row in live if len(row) < network.config.context_tokens and row[-1] != end_id]
        if not live:
            break
        for row, token in zip(live, _next_tokens(network, live), strict=True):
            row.append(token)
    answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [answer[:-1] if answer and answer[-1] == end_id else answer for answer in answers]


def _next_tokens(network: HomeCommandNetwork, rows: list[list[int]]) -> list[int]:
    """Return the likeliest next token of each row."""
    tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for line, row in enumerate(rows):
        tokens[line, : len(row)] = torch.tensor(row)
    last = torch.tensor([len(row) - 1 for row in rows])
    with torch.inference_mode():
        hidden = network.hidden(tokens)[torch.arange(len(rows)), last]
        likeliest: list[int] = network.logits(hidden).argmax(-1).tolist()
    return likeliest
