"""Training of `home-command` on a CPU, within a budget of minutes.

What makes an hour on two cores enough: Muon for the matrices (AdamW for embeddings and norms), bfloat16
autocast, the layers compiled by Inductor (twice as fast), batches of like length, and logits only where there
is loss. The learning rate follows the share of the budget that is used up: warm-up, level, then linear to
zero, which also makes an average of weights superfluous.

Seeds are fixed, but the number of steps depends on the machine: two runs give equal figures, not equal bytes.
A checkpoint every few minutes makes an interrupted run resumable. Data and its cache belong to `recipe.py`.

Source: Jordan et al., "Muon: An optimizer for hidden layers" (2024); Liu et al., "Muon is Scalable for LLM
Training" (2025) for the scale of its learning rate.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from edgeslm.forge.home_command.network import HomeCommandNetwork, NetworkConfig
from edgeslm.forge.home_command.tokenizer import BEGIN_ID, END_ID, SEPARATOR_ID, prompt_text

_LOG = logging.getLogger(__name__)

_PAD_MULTIPLE = 8
_SORTED_WINDOW_BATCHES = 64
_SHAPE_KEY = "shape"


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults were chosen by short runs on two cores.

    Training ends when `budget_s` is used up or after `maximum_steps`, whichever comes first.
    """

    budget_s: float = 50 * 60
    maximum_steps: int | None = None
    batch_tokens: int = 4096
    matrix_rate: float = 6e-3
    other_rate: float = 3e-3
    weight_decay: float = 0.05
    warm_up_steps: int = 150
    decay_from: float = 0.4
    clip_norm: float = 1.0
    text_share: float = 0.25
    text_weight: float = 0.2
    report_steps: int = 200
    checkpoint_s: float = 240.0
    seed: int = 20_24
    threads: int = 2
    compile_layers: bool = True


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Token sequences `<s> text <sep> answer </s>`, end to end in one array.

    `tokens: (total,) int16`; sequence i is `tokens[starts[i]:starts[i + 1]]` and its answer begins at
    `answer_starts[i]`, counted from its own start.
    """

    tokens: npt.NDArray[np.int16]
    starts: npt.NDArray[np.int64]
    answer_starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the length of each sequence in tokens."""
        return np.diff(self.starts)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Padded sequences; `tokens`, `is_answer`, `is_text: (batch, length)`, the masks mark targets."""

    tokens: Tensor
    is_answer: Tensor
    is_text: Tensor


def encode_examples(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], context_tokens: int
) -> EncodedExamples:
    """Tokenize (text, answer) pairs; those longer than the context are left out."""
    texts = tokenizer.encode_batch_fast([prompt_text(text) for text, _ in pairs])
    answers = tokenizer.encode_batch_fast([answer for _, answer in pairs])
    rows: list[list[int]] = []
    answer_starts: list[int] = []
    for text, answer in zip(texts, answers, strict=True):
        row = [BEGIN_ID, *text.ids, SEPARATOR_ID, *answer.ids, END_ID]
        if len(row) <= context_tokens:
            rows.append(row)
            answer_starts.append(len(text.ids) + 2)
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    flat = np.fromiter((token for row in rows for token in row), np.int16, int(starts[-1]))
    return EncodedExamples(flat, starts, np.array(answer_starts, np.int64))


def collate(examples: EncodedExamples, picked: npt.NDArray[np.int64]) -> Batch:
    """Pad the picked sequences to a common length, a multiple of eight."""
    lengths = examples.lengths()[picked]
    longest = -(-int(lengths.max()) // _PAD_MULTIPLE) * _PAD_MULTIPLE
    column = np.arange(longest)
    inside = column < lengths[:, None]
    source = np.where(inside, examples.starts[picked][:, None] + column, 0)
    tokens = np.where(inside, examples.tokens[source], 0).astype(np.int64)
    is_answer = inside & (column >= examples.answer_starts[picked][:, None])
    is_text = inside & ~is_answer & (column > 0)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(is_answer), torch.from_numpy(is_text))


def iterate_batches(examples: EncodedExamples, batch_tokens: int, seed: int) -> Iterator[Batch]:
    """Yield shuffled batches for ever, each of about `batch_tokens` padded tokens of like length."""
    rng = np.random.default_rng(seed)
    lengths = examples.lengths()
    window = max(1, _SORTED_WINDOW_BATCHES * batch_tokens // max(1, int(lengths.mean())))
    while True:
        order = rng.permutation(len(examples))
        for start in range(0, len(order), window):
            chunk = order[start : start + window]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            groups = list(_cut_by_tokens(chunk, lengths, batch_tokens))
            for index in rng.permutation(len(groups)):
                yield collate(examples, groups[index])


def train(
    network: HomeCommandNetwork,
    examples: EncodedExamples,
    held_out: EncodedExamples,
    settings: TrainingSettings,
    checkpoint: Path,
    resume: bool = False,
) -> None:
    """Train the network in place until the budget is used up.

    Args:
        network: as initialized; with `resume` its weights are overwritten.
        examples: the training data.
        held_out: a few hundred examples for the progress report; never trained on.
        settings: budget and rates.
        checkpoint: written every `checkpoint_s` seconds and at the end.
        resume: continue from the checkpoint if it exists; time spent before counts against the budget.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    optimizers = _make_optimizers(network, settings)
    step, spent_s = (
        _load_checkpoint(checkpoint, network, optimizers) if resume and checkpoint.exists() else (0, 0.0)
    )
    hidden = torch.compile(network.hidden, dynamic=True) if settings.compile_layers else network.hidden
    batches = iterate_batches(examples, settings.batch_tokens, settings.seed + step)
    started = last_saved = time.monotonic()
    network.train()
    running_loss = 0.0
    while (progress := _progress(settings, step, spent_s + time.monotonic() - started)) < 1:
        _set_rates(optimizers, settings, step, progress)
        loss = _loss(network, hidden, next(batches), settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed_s = spent_s + time.monotonic() - started
        running_loss += (loss.item() - running_loss) / min(step, 50)
        if step % settings.report_steps == 0:
            exact = teacher_forced_exact(network, held_out).float().mean().item()
            _LOG.info("step %d  %.0f s  loss %.4f  held-out exact %.3f", step, elapsed_s, running_loss, exact)
        if time.monotonic() - last_saved > settings.checkpoint_s:
            _save_checkpoint(checkpoint, network, optimizers, step, elapsed_s)
            last_saved = time.monotonic()
    _save_checkpoint(checkpoint, network, optimizers, step, spent_s + time.monotonic() - started)
    network.eval()


def teacher_forced_exact(
    network: HomeCommandNetwork, examples: EncodedExamples, batch_size: int = 250
) -> Tensor:
    """Tell for each example whether greedy decoding would give exactly its answer.

    Greedy decoding yields an answer if and only if each of its tokens is the likeliest one given the right
    tokens before it; one forward pass decides that.

    Returns:
        (examples,) bool
    """
    verdicts = []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples, np.arange(start, min(start + batch_size, len(examples))))
        with torch.inference_mode():
            right = network(batch.tokens)[:, :-1].argmax(-1) == batch.tokens[:, 1:]
        verdicts.append((right | ~batch.is_answer[:, 1:]).all(dim=1))
    return torch.cat(verdicts)


def save_weights(network: HomeCommandNetwork, path: Path) -> None:
    """Write weights and shape of the network as safetensors."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={_SHAPE_KEY: json.dumps(network.config.to_dict())})


def load_weights(path: Path) -> HomeCommandNetwork:
    """Read a network written by `save_weights`, in evaluation mode."""
    with safe_open(path, framework="pt") as file:
        shape = file.metadata()
    network = HomeCommandNetwork(NetworkConfig.from_dict(json.loads(shape[_SHAPE_KEY])))
    network.load_state_dict(load_file(path))
    network.eval()
    return network


def _cut_by_tokens(
    chunk: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_tokens: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Cut a list sorted by length so that each piece, padded, holds at most `batch_tokens`."""
    start = 0
    for end in range(1, len(chunk) + 1):
        is_last = end == len(chunk)
        padded = 0 if is_last else -(-int(lengths[chunk[end]]) // _PAD_MULTIPLE) * _PAD_MULTIPLE
        if is_last or padded * (end + 1 - start) > batch_tokens:
            yield chunk[start:end]
            start = end


def _loss(
    network: HomeCommandNetwork, hidden: Callable[[Tensor], Tensor], batch: Batch, settings: TrainingSettings
) -> Tensor:
    """Return the weighted mean loss: every answer token, and a random share of the text at a small weight."""
    chosen_text = batch.is_text & (torch.rand(batch.tokens.shape) < settings.text_share)
    targets = (batch.is_answer | chosen_text)[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = hidden(batch.tokens)
        logits = network.logits(states[:, :-1][targets])
    losses = functional.cross_entropy(logits.float(), batch.tokens[:, 1:][targets], reduction="none")
    weights = torch.where(batch.is_answer[:, 1:][targets], 1.0, settings.text_weight)
    return (losses * weights).sum() / weights.sum()


def _make_optimizers(network: HomeCommandNetwork, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for the rest."""
    matrices = [p for p in network.blocks.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.matrix_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _progress(settings: TrainingSettings, step: int, elapsed_s: float) -> float:
    """Return how much of the training is done, 1 at its end."""
    steps_done = step / settings.maximum_steps if settings.maximum_steps else 0.0
    return max(elapsed_s / settings.budget_s, steps_done)


def _set_rates(
    optimizers: Sequence[torch.optim.Optimizer], settings: TrainingSettings, step: int, progress: float
) -> None:
    warm = min(1.0, (step + 1) / settings.warm_up_steps)
    decay = min(1.0, max(0.0, (1.0 - progress) / (1.0 - settings.decay_from)))
    for optimizer, rate in zip(optimizers, (settings.matrix_rate, settings.other_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(warm, decay)


def _save_checkpoint(
    path: Path,
    network: HomeCommandNetwork,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    spent_s: float,
) -> None:
    """Replace the checkpoint in one step, so that an interruption leaves the old one or the new one."""
    state = {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "spent_s": spent_s,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _load_checkpoint(
    path: Path, network: HomeCommandNetwork, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, float]:
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    step, spent_s = int(state["step"]), float(state["spent_s"])
    _LOG.info("resuming at step %d after %.0f s", step, spent_s)
    return step, spent_s
