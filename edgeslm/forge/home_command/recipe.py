"""The recipe of `home-command`: from templates to two int8 graphs, one command, about an hour on two cores.

    python -m edgeslm.forge.home_command.recipe --out DIR [--minutes 50] [--resume] [--steps data,train,...]

Each step reads files of the steps before it and writes its own, so that each can be run again alone:

| step      | writes                                                                           |
|-----------|----------------------------------------------------------------------------------|
| data      | train.jsonl, held_out_clean.jsonl, held_out_noisy.jsonl, samples.txt             |
| tokenizer | tokenizer.json                                                                   |
| train     | weights.safetensors (checkpoint.pt while it runs)                                |
| convert   | home-command.tflite, home-command-tflite.tflite                                  |
| evaluate  | evaluation.json                                                                  |

The paraphrases in `data/held_out_paraphrases.jsonl` are read by `evaluate` only. Packing the result into
a `.slm` belongs to `edgeslm.forge`'s pack command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from edgeslm.forge.home_command import convert, data, evaluate
from edgeslm.forge.home_command.network import HomeCommandNetwork, NetworkConfig
from edgeslm.forge.home_command.tokenizer import load_tokenizer, train_tokenizer
from edgeslm.forge.home_command.train import (
    TrainingSettings,
    encode_examples,
    load_weights,
    save_weights,
    train,
)

_LOG = logging.getLogger(__name__)

PARAPHRASES: Final = Path(data.__file__).with_name("held_out_paraphrases.jsonl")
HELD_OUT_SEED: Final = 9_001
TRAINING_SEED: Final = 1
TOKENIZER_EXAMPLES: Final = 60_000
PROGRESS_EXAMPLES: Final = 400
MINIMUM_EXACT: Final = 0.95
MAXIMUM_INT8_LOSS: Final = 0.01


@dataclasses.dataclass(frozen=True)
class RecipeSettings:
    """What the command line decides."""

    directory: Path
    minutes: float = 50.0
    resume: bool = False
    example_count: int = 1_500_000
    held_out_count: int = 2_000
    workers: int = 2
    tflite_python: str | None = None


def make_data(settings: RecipeSettings) -> None:
    """Draw the training data and both held-out sets, each once."""
    share = settings.example_count // settings.workers
    seeds = [TRAINING_SEED + worker for worker in range(settings.workers)]
    with multiprocessing.Pool(settings.workers) as pool:
        parts = pool.starmap(_draw_training_lines, [(seed, share) for seed in seeds])
    (settings.directory / "train.jsonl").write_text("".join(parts), encoding="utf-8")
    for name, noisy in (("clean", False), ("noisy", True)):
        examples = data.generate(settings.held_out_count, HELD_OUT_SEED, held_out=True, noisy=noisy)
        lines = "".join(_line(example) for example in examples)
        (settings.directory / f"held_out_{name}.jsonl").write_text(lines, encoding="utf-8")
    samples = [
        f"{text}\t{answer}" for text, answer in islice(_read_pairs(settings.directory / "train.jsonl"), 200)
    ]
    (settings.directory / "samples.txt").write_text("\n".join(samples) + "\n", encoding="utf-8")
    _LOG.info("%d training examples", share * settings.workers)


def make_tokenizer(settings: RecipeSettings) -> None:
    """Train the tokenizer on the beginning of the training data."""
    pairs = islice(_read_pairs(settings.directory / "train.jsonl"), TOKENIZER_EXAMPLES)
    tokenizer = train_tokenizer((text for pair in pairs for text in pair), data.fixed_fragments())
    tokenizer.save(str(settings.directory / "tokenizer.json"))
    _LOG.info("%d tokens", tokenizer.get_vocab_size())


def train_network(settings: RecipeSettings) -> None:
    """Train for the budget, or continue a training that was interrupted."""
    directory = settings.directory
    config = NetworkConfig()
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    examples = encode_examples(tokenizer, list(_read_pairs(directory / "train.jsonl")), config.context_tokens)
    progress = list(islice(_read_pairs(directory / "held_out_clean.jsonl"), PROGRESS_EXAMPLES))
    _LOG.info("%d examples of %.1f tokens", len(examples), examples.lengths().mean())
    training = TrainingSettings(budget_s=settings.minutes * 60, threads=settings.workers)
    torch.manual_seed(training.seed)
    network = HomeCommandNetwork(config)
    held_out = encode_examples(tokenizer, progress, config.context_tokens)
    train(network, examples, held_out, training, directory / "checkpoint.pt", settings.resume)
    save_weights(network, directory / "weights.safetensors")


def convert_network(settings: RecipeSettings) -> None:
    """Write both int8 graphs."""
    convert.convert_both(load_weights(settings.directory / "weights.safetensors"), settings.directory)


def evaluate_candidates(settings: RecipeSettings) -> None:
    """Compare the float network and both graphs on all held-out sets; log the table, write the report."""
    directory = settings.directory
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    network = load_weights(directory / "weights.safetensors")
    candidates: dict[str, Callable[[Sequence[evaluate.Case]], evaluate.Answers]] = {
        "float": lambda cases: evaluate.answer_with_network(network, tokenizer, cases),
        "litert": lambda cases: evaluate.answer_with_graph(
            directory / "home-command.tflite", tokenizer, cases
        ),
    }
    if (python := settings.tflite_python) is not None:
        graph = directory / "home-command-tflite.tflite"
        candidates["tflite-runtime"] = lambda cases: evaluate.answer_with_graph(
            graph, tokenizer, cases, python
        )
    sets = {
        "clean": directory / "held_out_clean.jsonl",
        "noisy": directory / "held_out_noisy.jsonl",
        "paraphrases": PARAPHRASES,
    }
    report: dict[str, Any] = {}
    for set_name, path in sets.items():
        if not path.exists():
            _LOG.warning("%s is missing: no figures for %s", path, set_name)
            continue
        cases = evaluate.read_cases(path)
        report[set_name] = {name: evaluate.score(cases, answer(cases)) for name, answer in candidates.items()}
        for name, figures in report[set_name].items():
            _LOG.info(
                "%-12s %-15s exact %.4f  intent %.4f", set_name, name, figures["exact"], figures["intent"]
            )
    report["bars"] = check_bars(report)
    (directory / "evaluation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    _LOG.info("bars: %s", report["bars"])


def check_bars(report: dict[str, Any]) -> dict[str, bool]:
    """Tell for each graph whether it is 95 % exact on clean sentences and loses under a point to int8."""
    figures = report["clean"]
    return {
        name: found["exact"] >= MINIMUM_EXACT
        and figures["float"]["exact"] - found["exact"] < MAXIMUM_INT8_LOSS
        for name, found in figures.items()
        if name != "float"
    }


STEPS: Final[dict[str, Callable[[RecipeSettings], None]]] = {
    "data": make_data,
    "tokenizer": make_tokenizer,
    "train": train_network,
    "convert": convert_network,
    "evaluate": evaluate_candidates,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps asked for, in order."""
    parser = argparse.ArgumentParser(description="Build the model home-command.")
    parser.add_argument("--out", type=Path, required=True, help="directory for everything the recipe makes")
    parser.add_argument("--minutes", type=float, default=50.0, help="training time (default: 50)")
    parser.add_argument("--resume", action="store_true", help="continue the training from its checkpoint")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated (default: all)")
    parser.add_argument(
        "--examples", type=int, default=1_500_000, help="training examples (default: 1500000)"
    )
    parser.add_argument(
        "--tflite-python", help="a Python with tflite-runtime 2.14, to evaluate the second graph"
    )
    options = parser.parse_args(arguments)
    wanted = options.steps.split(",")
    if unknown := set(wanted) - STEPS.keys():
        parser.error(f"unknown steps {sorted(unknown)}; known: {', '.join(STEPS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    settings = RecipeSettings(
        directory=options.out,
        minutes=options.minutes,
        resume=options.resume,
        example_count=options.examples,
        tflite_python=options.tflite_python,
    )
    settings.directory.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        if name in wanted:
            _LOG.info("step %s", name)
            step(settings)


def _draw_training_lines(seed: int, count: int) -> str:
    """Run in a worker process; text crosses the process border cheaply."""
    return "".join(_line(example) for example in data.generate(count, seed))


def _line(example: data.Example) -> str:
    return json.dumps({"text": example.text, "answer": example.answer}, ensure_ascii=False) + "\n"


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["text"], row["answer"]


if __name__ == "__main__":
    main()
