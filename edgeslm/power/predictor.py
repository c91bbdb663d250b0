"""What a prompt will cost before it runs: joules, seconds and tokens, learned from the ones before it.

Joules and seconds are each ``fixed + prompt tokens * a + generated tokens * b``, with coefficients of their own for
each model and setting of the board, found by Bayesian linear regression on relative errors: half a joule too much
matters for a prompt of one joule, not for one of fifty. Before the first prompt they come from the power table and
the size of the model, which may be wrong by a factor of several; the prior says so, and the first prompt sets the
scale. A new setting of a known model starts from what is known of its other settings.

How many tokens the answer will have is told from the last answers of the model: a line over the length of the
prompt, and how far they lay from it.

No clock and no I/O. Thread-safe.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeslm.schema.board import PowerTable

_Array = NDArray[np.float64]

MOST_SETTINGS = 32
"""Settings beyond which the one not used for longest is forgotten."""

_ANSWERS_KEPT = 64
_SHRINK = 4
_P90 = 1.2816  # of the normal distribution

_NS_PER_BYTE = 1.5
_SECONDS_PER_TOKEN = 3e-4
_PROMPT_TOKEN_SHARE = 0.3
_FIXED_TOKENS = 2.0
_DEFAULT_SIZE_BYTES = 1_000_000
_DEFAULT_ANSWER_TOKENS = 32

_NOISE_SHARE = 0.15
_FORGET = 0.995
_NOISE_GAIN = 0.05
_TREND_GAIN = 0.1
_TREND_LIMIT = 1.2
"""Five times what the running mean of mere noise scatters by."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model runs.

    Attributes:
        model: name and version.
        threads: inference threads.
        frequency_mhz: highest frequency of the processor; ``None`` for the board's own choice.
    """

    model: str
    threads: int
    frequency_mhz: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a prompt will cost; the ``_p90`` are what nine of ten such prompts stay below.

    Attributes:
        net_j: joules above the idle draw.
        completion_tokens: tokens of the answer.
        j_per_token: joules above idle of each further token of the answer.
        samples: prompts of this setting that it rests on; 0 is the prior alone.
    """

    net_j: float
    net_j_p90: float
    seconds: float
    seconds_p90: float
    completion_tokens: float
    completion_tokens_p90: float
    j_per_token: float
    samples: int


class _Regression:
    """Coefficients of (1, prompt tokens, generated tokens) with their covariance: each (3,) and (3, 3) float64."""

    def __init__(self, mean: _Array, covariance: _Array, noise_share: float = _NOISE_SHARE) -> None:
        self.mean = mean
        self.covariance = covariance
        self.noise_share = noise_share
        self._trend = 0.0

    @classmethod
    def around(cls, mean: _Array, scale_error: float, own_error: float) -> _Regression:
        """All of it wrong by `scale_error` together and each coefficient by `own_error` of its own (relative)."""
        return cls(mean, scale_error**2 * np.outer(mean, mean) + np.diag((own_error * mean) ** 2 + 1e-18))

    def value(self, features: _Array) -> float:
        return max(float(features @ self.mean), 0.0)

    def error_share(self, features: _Array) -> float:
        """Relative error (one sigma) of the value for one prompt."""
        value = self.value(features)
        if value <= 0:
            return self.noise_share
        own = float(features @ self.covariance @ features) / value**2
        return math.sqrt(own + self.noise_share**2)

    def learn(self, features: _Array, value: float) -> None:
        """Update by one prompt; `value` is positive."""
        # Relative to what was expected, for a noisy value would weigh itself by its noise; but within bounds, for
        # the prior may be far off.
        scale = min(max(self.value(features), value / 3), value * 3)
        scaled = features / scale
        covariance = self.covariance / _FORGET
        spread = covariance @ scaled
        doubt = max(float(scaled @ spread), 0.0)
        surprise = (value - float(features @ self.mean)) / scale
        own = self.noise_share**2
        sigmas = max(-3.0, min(3.0, surprise / math.sqrt(doubt + own)))
        step = spread / (doubt + own)
        self.mean = np.maximum(self.mean + step * surprise, 0.0)
        # In Joseph's form, which stays positive whatever is rounded.
        kept = np.eye(3) - np.outer(step, scaled)
        self.covariance = kept @ covariance @ kept.T + own * np.outer(step, step)
        # What of the surprise the doubt about the coefficients does not explain is noise.
        self.noise_share = min(max(math.sqrt(own + _NOISE_GAIN * (sigmas**2 - 1) * own), 0.01), 1.0)
        self._trend += _TREND_GAIN * (sigmas - self._trend)
        if abs(self._trend) > _TREND_LIMIT:
            # Several surprises to the same side: the board is not what it was, so what is known is a guess again.
            self._trend = 0.0
            self.covariance = _Regression.around(self.mean, 1.0, 0.2).covariance

    def state(self) -> list[float]:
        return [*self.mean.tolist(), *self.covariance.ravel().tolist(), self.noise_share]

    @classmethod
    def restore(cls, state: object) -> _Regression | None:
        numbers = _numbers(state)
        if numbers is None or len(numbers) != 13 or not 0 < numbers[12] <= 1:
            return None
        covariance = np.array(numbers[3:12]).reshape(3, 3)
        if float(np.linalg.eigvalsh(covariance)[0]) < -1e-9 * abs(covariance).max():
            return None
        return cls(np.maximum(numbers[:3], 0.0), covariance, numbers[12])


@dataclass(slots=True)
class _Known:
    """What is known of one setting."""

    joules: _Regression
    seconds: _Regression
    samples: int


class Predictor:
    """Learns from each prompt that ran, and predicts the next."""

    def __init__(
        self, table: PowerTable, sizes_bytes: Mapping[str, int], state: Mapping[str, object] | None = None
    ) -> None:
        """Start from the prior, or from what :meth:`state` gave before a restart.

        Args:
            table: of the board.
            sizes_bytes: size of each model's graph, by name and version.
        """
        self._table = table
        self._sizes_bytes = sizes_bytes
        self._lock = threading.Lock()
        self._known: dict[Setting, _Known] = {}
        self._answers: dict[str, deque[tuple[int, int]]] = {}
        self._restore(state or {})

    def predict(self, setting: Setting, prompt_tokens: int, max_tokens: int) -> Prediction:
        """Cost of a prompt of `prompt_tokens` whose answer may have up to `max_tokens`."""
        with self._lock:
            known = self._known.get(setting) or self._prior(setting)
            tokens, tokens_p90 = self._answer_tokens(setting.model, prompt_tokens, max_tokens)
            mean = np.array([1.0, prompt_tokens, tokens])
            p90 = np.array([1.0, prompt_tokens, tokens_p90])
            net_j, net_j_p90 = _with_p90(known.joules, mean, p90)
            seconds, seconds_p90 = _with_p90(known.seconds, mean, p90)
            return Prediction(
                net_j=net_j,
                net_j_p90=net_j_p90,
                seconds=seconds,
                seconds_p90=seconds_p90,
                completion_tokens=tokens,
                completion_tokens_p90=tokens_p90,
                j_per_token=float(known.joules.mean[2]),
                samples=known.samples,
            )

    def learn(
        self,
        setting: Setting,
        prompt_tokens: int,
        completion_tokens: int,
        net_j: float,
        seconds: float,
        *,
        complete: bool,
    ) -> None:
        """Take in what a prompt did cost.

        Args:
            net_j: joules above the idle draw; not above 0 teaches nothing.
            seconds: computing time.
            complete: the answer ended by itself and was not cut off.
        """
        if not (math.isfinite(net_j) and math.isfinite(seconds) and net_j > 0 and seconds > 0):
            return
        features = np.array([1.0, prompt_tokens, completion_tokens])
        with self._lock:
            known = self._known.pop(setting, None) or self._prior(setting)
            self._known[setting] = known
            if len(self._known) > MOST_SETTINGS:
                self._known.pop(next(iter(self._known)))
            known.joules.learn(features, net_j)
            known.seconds.learn(features, seconds)
            known.samples += 1
            answers = self._answers.setdefault(setting.model, deque(maxlen=_ANSWERS_KEPT))
            # One that was cut off tells only that answers can be as long as that.
            if complete or not answers or completion_tokens > statistics.fmean(c for _, c in answers):
                answers.append((prompt_tokens, completion_tokens))

    def state(self) -> dict[str, object]:
        """What was learned, as JSON."""
        with self._lock:
            settings = [
                {
                    "model": setting.model,
                    "threads": setting.threads,
                    "frequency_mhz": setting.frequency_mhz,
                    "joules": known.joules.state(),
                    "seconds": known.seconds.state(),
                    "samples": known.samples,
                }
                for setting, known in self._known.items()
            ]
            answers = {model: [list(pair) for pair in pairs] for model, pairs in self._answers.items()}
        return {"settings": settings, "answers": answers}

    def _prior(self, setting: Setting) -> _Known:
        """From other settings of the model, else from the power table and the model's size."""
        share = self._frequency_share(setting)
        power = setting.threads * share**self._table.frequency_exponent
        siblings = [(s, known) for s, known in self._known.items() if s.model == setting.model]
        if siblings:
            other, known = max(siblings, key=lambda pair: pair[1].samples)
            slower = other.threads * self._frequency_share(other) / (setting.threads * share)
            stronger = power / (
                other.threads * self._frequency_share(other) ** self._table.frequency_exponent
            )
            return _Known(
                _Regression.around(known.joules.mean * (slower * stronger), 1.0, 0.2),
                _Regression.around(known.seconds.mean * slower, 1.0, 0.2),
                0,
            )
        size_bytes = self._sizes_bytes.get(setting.model, _DEFAULT_SIZE_BYTES)
        token_s = (_SECONDS_PER_TOKEN + size_bytes * _NS_PER_BYTE * 1e-9 / setting.threads) / share
        seconds = token_s * np.array([_FIXED_TOKENS, _PROMPT_TOKEN_SHARE, 1.0])
        joules = max(self._table.core_load_w, 0.01) * power * seconds
        return _Known(_Regression.around(joules, 2.0, 0.5), _Regression.around(seconds, 2.0, 0.5), 0)

    def _frequency_share(self, setting: Setting) -> float:
        if setting.frequency_mhz is None or self._table.max_mhz is None:
            return 1.0
        return setting.frequency_mhz / self._table.max_mhz

    def _answer_tokens(self, model: str, prompt_tokens: int, max_tokens: int) -> tuple[float, float]:
        """Expected tokens of the answer, and what nine of ten stay below."""
        answers = self._answers.get(model)
        if not answers:
            guess = min(float(_DEFAULT_ANSWER_TOKENS), max_tokens)
            return guess, float(max_tokens)
        count = len(answers)
        prompt_mean = statistics.fmean(p for p, _ in answers)
        answer_mean = statistics.fmean(c for _, c in answers)
        variance = sum((p - prompt_mean) ** 2 for p, _ in answers)
        covariance = sum((p - prompt_mean) * (c - answer_mean) for p, c in answers)
        slope = covariance / variance * count / (count + _SHRINK) if variance > 0 else 0.0
        likely = sorted(min(max(c + slope * (prompt_tokens - p), 1.0), float(max_tokens)) for p, c in answers)
        return statistics.fmean(likely), likely[min(int(0.9 * count), count - 1)]

    def _restore(self, state: Mapping[str, object]) -> None:
        settings = state.get("settings")
        for entry in settings if isinstance(settings, list) else []:
            if not isinstance(entry, dict):
                continue
            model, threads, mhz = (entry.get(name) for name in ("model", "threads", "frequency_mhz"))
            samples = entry.get("samples")
            joules, seconds = (
                _Regression.restore(entry.get("joules")),
                _Regression.restore(entry.get("seconds")),
            )
            if (
                isinstance(model, str)
                and isinstance(threads, int)
                and threads > 0
                and (mhz is None or (isinstance(mhz, int) and mhz > 0))
                and isinstance(samples, int)
                and joules is not None
                and seconds is not None
            ):
                self._known[Setting(model, threads, mhz)] = _Known(joules, seconds, samples)
        answers = state.get("answers")
        for model, pairs in answers.items() if isinstance(answers, dict) else []:
            numbers = [_numbers(pair) for pair in pairs] if isinstance(pairs, list) else []
            kept = [(int(pair[0]), int(pair[1])) for pair in numbers if pair is not None and len(pair) == 2]
            self._answers[str(model)] = deque(kept, maxlen=_ANSWERS_KEPT)


def _with_p90(regression: _Regression, mean: _Array, p90: _Array) -> tuple[float, float]:
    """Expected value, and with the doubts about coefficients, noise and tokens added what nine of ten stay below."""
    value = regression.value(mean)
    longer = max(regression.value(p90) - value, 0.0)
    return value, value + math.hypot(longer, _P90 * regression.error_share(mean) * value)


def _numbers(value: object) -> Sequence[float] | None:
    if not isinstance(value, list):
        return None
    numbers = [float(n) for n in value if isinstance(n, (int, float)) and math.isfinite(n)]
    return numbers if len(numbers) == len(value) else None
