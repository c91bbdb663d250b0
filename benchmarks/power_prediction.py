"""How well the cost of a prompt is known before it runs, after fifty prompts on a board that is new to us."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.agent_rig import golden_prompts
from edgeslm.cli.wiring import open_model
from edgeslm.power.boards import choose_board, load_boards
from edgeslm.power.meter import EstimatedMeter
from edgeslm.power.port import Cause
from edgeslm.power.predictor import Prediction, Predictor, Setting
from edgeslm.runtime.model import LoadedModel
from edgeslm.schema.message import Options

MODEL = "home-command"
LEARNED = 50
"""Prompts before the first prediction that counts."""

_COUNTED = 100
_SEEDS = 24
_RUN_NOISE = 0.05
_METER_NOISE_J = 0.002
_WARMTH = 0.08


@dataclass(frozen=True)
class PromptCost:
    """What a prompt did cost."""

    prompt_tokens: int
    completion_tokens: int
    net_j: float
    seconds: float


@dataclass(frozen=True)
class PredictionFigures:
    """Of predictions made before each prompt ran.

    Attributes:
        error: median of the error relative to what it did cost, in net joules.
        seconds_error: the same in seconds.
        below_p90: share of prompts that cost no more than the 90th percentile told for them.
    """

    error: float
    seconds_error: float
    below_p90: float


def prediction_error(seeds: int = _SEEDS) -> PredictionFigures:
    """On simulated boards: token counts of the real model, joules of a board that the power table gets wrong.

    Each seed is a board whose draw and speed are off the table's by up to three times, whose runs differ among
    each other by 5 % and warm up by 8 % on the way, and whose meter adds noise of its own.
    """
    costs = _real_costs(open_model(MODEL, threads=1))
    made: list[tuple[Prediction, PromptCost]] = []
    table = load_boards()["pi-4b"].power
    for seed in range(seeds):
        rng = random.Random(seed)
        draw_w = table.core_load_w * rng.uniform(1 / 3, 3)
        token_s = 2e-3 * rng.uniform(1 / 3, 3)
        runs = []
        for number in range(LEARNED + _COUNTED):
            cost = rng.choice(costs)
            tokens = 3 + 0.3 * cost.prompt_tokens + cost.completion_tokens
            seconds = token_s * tokens * rng.lognormvariate(0.0, _RUN_NOISE)
            net_j = draw_w * (1 + _WARMTH * min(number / LEARNED, 1.0)) * seconds
            net_j = max(net_j + rng.gauss(0.0, _METER_NOISE_J), 1e-4)
            runs.append(PromptCost(cost.prompt_tokens, cost.completion_tokens, net_j, seconds))
        predictor = Predictor(table, {})
        made += _predict(predictor, Setting("simulated@1", 1), runs)
    return _figures(made)


def real_prediction_error() -> PredictionFigures:
    """With the built-in model on this machine, against the estimated meter."""
    model = open_model(MODEL, threads=1)
    costs = _real_costs(model)
    random.Random(0).shuffle(costs)
    sizes = {model.name: sum(path.stat().st_size for path in model.installed.directory.glob("*.tflite"))}
    predictor = Predictor(choose_board(None).power, sizes)
    return _figures(_predict(predictor, Setting(model.name, 1), costs))


def _predict(
    predictor: Predictor, setting: Setting, costs: Sequence[PromptCost]
) -> list[tuple[Prediction, PromptCost]]:
    """Predict and learn one after the other; what comes after the first fifty."""
    made = []
    for cost in costs:
        made.append((predictor.predict(setting, cost.prompt_tokens, 128), cost))
        predictor.learn(
            setting, cost.prompt_tokens, cost.completion_tokens, cost.net_j, cost.seconds, complete=True
        )
    return made[LEARNED:]


def _figures(made: Sequence[tuple[Prediction, PromptCost]]) -> PredictionFigures:
    return PredictionFigures(
        error=statistics.median(abs(said.net_j - cost.net_j) / cost.net_j for said, cost in made),
        seconds_error=statistics.median(
            abs(said.seconds - cost.seconds) / cost.seconds for said, cost in made
        ),
        below_p90=statistics.fmean(cost.net_j <= said.net_j_p90 for said, cost in made),
    )


def _real_costs(model: LoadedModel) -> list[PromptCost]:
    """All golden prompts, three times, on the real model with the estimated meter."""
    meter = EstimatedMeter(choose_board(None).power)
    costs = []
    for prompt in golden_prompts() * 3:
        span = meter.begin(Cause("prompt", model=model.name))
        generation = model.answer(prompt, Options()).generation
        net_j = span.end().net_j
        tokens = len(generation.token_ids)
        costs.append(PromptCost(generation.prompt_tokens, tokens, net_j, generation.total_s))
    return costs
