"""What a simulated device measures of a release in its trial, judged by the gate of real devices. Pure.

What always holds: the measurement of a device follows from the seed, the device and the two releases alone, whatever
else happens; answers follow from the releases alone, since answers are greedy and the same on every board.

A block's times and joules are those of the board, times what the release does there, times noise. Left to others:
when a trial takes place (:mod:`edgeslm.sim.fleet_update`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from edgeslm.agent.update.gate import Block, Evidence, Round, judge, looks, needs_more
from edgeslm.schema.message import MeterClass
from edgeslm.schema.sim_fleet import Noise, ReleaseEffect
from edgeslm.schema.update import GatePolicy, Verdict
from edgeslm.sim.chance import bell, share

GOLDEN_PROMPTS: Final = 200
_WRONG_ANYWAY: Final = 0.01
"""Share of golden prompts that every release gets wrong."""
_TTFT_S, _TOKEN_S, _ENERGY_J, _PEAK_MB = 0.06, 0.009, 0.8, 58.0
_BURST = 1.5
_BLOCKS_A_ROUND = 4
_NO_EFFECT: Final = ReleaseEffect(release="none@0.0.0")


@dataclass(frozen=True)
class Effects:
    """What each release does on each type of board."""

    found: Mapping[tuple[str, str], ReleaseEffect] = field(default_factory=dict)

    @classmethod
    def of(cls, releases: Sequence[ReleaseEffect]) -> Effects:
        """As a scenario says it; an effect that names a board goes before one that is for all."""
        return cls(
            {(effect.release, board): effect for effect in releases for board in effect.boards or ("",)}
        )

    def get(self, release: str, board: str) -> ReleaseEffect:
        """What `release` (``name@version``) does on `board`."""
        return self.found.get((release, board)) or self.found.get((release, "")) or _NO_EFFECT


@dataclass(frozen=True)
class Subject:
    """A device on which releases are compared.

    Attributes:
        seed: of the simulation.
        number: of the device.
        meter: how it knows energy; ``None`` is not at all.
    """

    seed: int
    number: int
    board: str
    noise: Noise
    meter: MeterClass | None


def place_of(text: str) -> int:
    """A number of chance for a name: the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def measure(
    subject: Subject,
    old: str | None,
    new: str,
    effects: Effects,
    policy: GatePolicy,
    *,
    attempt: int = 1,
    temperature_c: float | None = None,
) -> Verdict:
    """The gate's verdict on release `new` where `old` runs, both as ``name@version``.

    Args:
        old: ``None`` where nothing runs yet.
        attempt: number of the trial; another one has other noise.
        temperature_c: of the processor when it begins.
    """
    new_right = _right(new, effects.get(new, subject.board).answers)
    old_right = None if old is None else _right(old, effects.get(old, subject.board).answers)
    rounds: list[Round] = []
    verdict = _judge(subject, old, new, effects, policy, new_right, old_right, rounds, temperature_c)
    if old is None or verdict.outcome == "fail":
        return verdict  # as on a real device: no measurement makes wrong answers right
    source = _source(subject, new, attempt)
    ratios = [
        (factor(subject, old, effects, what), factor(subject, new, effects, what))
        for what in ("time", "energy")
    ]
    # The gate decides after these numbers of rounds only, so nothing is lost by not asking it in between.
    for count in looks(policy):
        while len(rounds) < count:
            rounds.append(_round(subject, source, ratios, len(rounds)))
        verdict = _judge(subject, old, new, effects, policy, new_right, old_right, rounds, temperature_c)
        if not needs_more(policy, verdict):
            break
    return verdict


def factor(subject: Subject, release: str, effects: Effects, what: str) -> float:
    """How many times as much ``time`` or ``energy`` (`what`) a prompt takes on this device by what `release` does."""
    effect = effects.get(release, subject.board)
    mean = effect.time if what == "time" else effect.energy
    spread = subject.noise.spread * bell(subject.seed, subject.number, place_of(release), place_of(what))
    return (1.0 + mean) * math.exp(spread) if mean else 1.0


# --- inside -------------------------------------------------------------------------------------------------


def _judge(
    subject: Subject,
    old: str | None,
    new: str,
    effects: Effects,
    policy: GatePolicy,
    new_right: tuple[bool, ...],
    old_right: tuple[bool, ...] | None,
    rounds: Sequence[Round],
    temperature_c: float | None,
) -> Verdict:
    peak_mb = _PEAK_MB * (1.0 + effects.get(new, subject.board).memory)
    old_peak_mb = None if old is None else _PEAK_MB * (1.0 + effects.get(old, subject.board).memory)
    return judge(
        policy,
        Evidence(
            mode="beside",
            new_right=new_right,
            old_right=old_right,
            rounds=tuple(rounds),
            new_peak_mb=peak_mb,
            old_peak_mb=old_peak_mb,
            seconds=len(rounds) * _BLOCKS_A_ROUND * policy.block_s,
            temperature_c=None if temperature_c is None else round(temperature_c, 1),
        ),
    )


@lru_cache(maxsize=256)
def _right(release: str, wrong_share: float) -> tuple[bool, ...]:
    """By golden prompt, whether `release` answers it rightly; some are too hard for every release."""
    hard = round(_WRONG_ANYWAY * GOLDEN_PROMPTS)
    others = sorted(range(hard, GOLDEN_PROMPTS), key=lambda prompt: share(place_of(release), prompt))
    wrong = {*range(hard), *others[: round(wrong_share * GOLDEN_PROMPTS)]}
    return tuple(prompt not in wrong for prompt in range(GOLDEN_PROMPTS))


def _source(subject: Subject, new: str, attempt: int) -> random.Random:
    """Noise of one trial: many numbers in a fixed order, which a generator makes faster than single ones are mixed."""
    first = share(subject.seed, subject.number, place_of(new), attempt)
    return random.Random(int(first * 2**53))  # noqa: S311 - repeatable noise, no secret


def _round(
    subject: Subject, source: random.Random, ratios: Sequence[tuple[float, float]], number: int
) -> Round:
    """Old, new, new, old, in every second round inside out."""
    turned = number % 2 == 1
    blocks: list[tuple[bool, Block]] = []
    for place in range(_BLOCKS_A_ROUND):
        is_new = (place in {1, 2}) != turned
        slower, hungrier = (pair[is_new] for pair in ratios)
        blocks.append((is_new, _block(subject, source, slower, hungrier, number * _BLOCKS_A_ROUND + place)))
    old = [block for is_new, block in blocks if not is_new]
    new = [block for is_new, block in blocks if is_new]
    return Round((old[0], old[1]), (new[0], new[1]))


def _block(subject: Subject, source: random.Random, slower: float, hungrier: float, number: int) -> Block:
    noise = subject.noise
    common = slower * (1.0 + noise.drift) ** number
    burst = _BURST if source.random() < noise.bursts else 1.0
    ttft_s = _TTFT_S * common * burst * math.exp(noise.speed * source.gauss(0.0, 1.0))
    token_s = _TOKEN_S * common * burst * math.exp(noise.speed * source.gauss(0.0, 1.0))
    energy = (
        hungrier * burst * (1.0 + noise.drift) ** number * math.exp(noise.energy * source.gauss(0.0, 1.0))
    )
    return Block(
        ttft_s=ttft_s,
        token_s=token_s,
        energy_j=None if subject.meter is None else _ENERGY_J * energy,
        meter=subject.meter,
    )
