"""Decides whether a candidate is good enough, from what was measured on this board. Pure.

Speed and energy are compared round by round. A round is four blocks, old, new, new, old (or the other way round), of
the same prompts, so that whatever drifts slowly and steadily (heat, other load) cancels. The logarithms of the ratios
new/old of all rounds give a trimmed mean and its confidence bounds (Yuen, "The two-sample trimmed t for unequal
population variances", Biometrika 61, 1974): a round into which something burst is cut off rather than believed. A
criterion is decided as soon as both bounds lie on one side of half its limit. It is looked at only after some numbers
of rounds, and the allowed error is shared among these looks, so that looking often does not make errors likelier.

Answers are greedy, so they are the same every time: they are compared prompt by prompt and not statistically. A prompt
that the running release gets wrong too is not held against the candidate.

Left to others: measuring (:mod:`edgeslm.agent.update.measuring`), and what follows from the verdict
(:mod:`edgeslm.agent.update.machine`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeslm.schema.message import MeterClass
from edgeslm.schema.update import (
    Criterion,
    CriterionOutcome,
    CriterionVerdict,
    GatePolicy,
    Outcome,
    TrialMode,
    Verdict,
)

_ERROR = 0.01
"""Chance that one criterion is decided wrongly in one direction, over all looks."""
_TRIMMED = 0.2
_LOOK_GROWTH = 1.35
_MEMORY_SLACK_MB = 4.0
"""Peaks of one release differ by this much from run to run: which pages are touched depends on timing."""


COMPARES_NOTHING = GatePolicy(speed=None, energy=None, answers=None, memory=None, required=())
"""For a release that ran here before and is wanted back: that its successor is faster must not keep it out."""

_Pair = tuple[float | None, float | None]
"""One figure of the running release and of the candidate."""


@dataclass(frozen=True)
class Block:
    """One release answering some golden prompts, once each.

    Attributes:
        ttft_s: mean seconds to the first token; ``None`` where there was none.
        token_s: mean seconds of each token after it; ``None`` where answers have but one.
        energy_j: mean joules of the whole board a prompt; ``None`` where nothing tells.
        meter: how the energy is known.
    """

    ttft_s: float | None
    token_s: float | None = None
    energy_j: float | None = None
    meter: MeterClass | None = None


@dataclass(frozen=True)
class Round:
    """Two blocks of each release over the same prompts."""

    old: tuple[Block, Block]
    new: tuple[Block, Block]


@dataclass(frozen=True)
class Evidence:
    """All that was measured.

    Attributes:
        new_right: by golden prompt, whether the candidate answered it rightly.
        old_right: the same of the running release; ``None`` where nothing runs yet.
        rounds: undisturbed ones.
        new_peak_mb: highest resident memory of the candidate's process.
        old_peak_mb: the same of the running release in a process of its own, where it had one.
        disturbed: blocks that were thrown away.
    """

    mode: TrialMode
    new_right: tuple[bool, ...]
    old_right: tuple[bool, ...] | None
    rounds: tuple[Round, ...] = ()
    new_peak_mb: float | None = None
    old_peak_mb: float | None = None
    disturbed: int = 0
    seconds: float = 0.0
    temperature_c: float | None = None
    notes: tuple[str, ...] = ()


def looks(policy: GatePolicy) -> tuple[int, ...]:
    """The numbers of rounds after which the gate looks at them, rising."""
    found = [policy.min_rounds]
    while found[-1] < policy.max_rounds:
        found.append(min(policy.max_rounds, math.ceil(found[-1] * _LOOK_GROWTH)))
    return tuple(found)


def judge(policy: GatePolicy, evidence: Evidence) -> Verdict:
    """The verdict on what was measured so far; :func:`needs_more` tells whether it is worth going on."""
    criteria = [
        _answers(policy, evidence),
        _timing("ttft", policy, evidence),
        _timing("decode", policy, evidence),
        _energy(policy, evidence),
        _memory(policy, evidence),
    ]
    outcomes = {item.outcome for item in criteria}
    notes = list(evidence.notes)
    by_name = {item.name: item for item in criteria}
    # Where nothing runs yet there is nothing to compare with; answers can be held against the package itself.
    required = [name for name in policy.required if evidence.old_right is not None or name == "answers"]
    lacking = [name for name in required if by_name[name].outcome == "not_measured"]
    notes += [f"{name} has to be measured, and was not" for name in lacking]
    undecided = bool(lacking) or "inconclusive" in outcomes
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if undecided else "pass"
    return Verdict(
        outcome=outcome,
        mode=evidence.mode,
        criteria=tuple(criteria),
        meter=_weakest(evidence.rounds),
        prompts=len(evidence.new_right),
        rounds=len(evidence.rounds),
        disturbed=evidence.disturbed,
        seconds=round(evidence.seconds, 1),
        temperature_c=evidence.temperature_c,
        notes=tuple(note[:500] for note in notes),
    )


def needs_more(policy: GatePolicy, verdict: Verdict) -> bool:
    """Whether more rounds could turn `verdict` into another one."""
    is_open = any(item.outcome == "inconclusive" for item in verdict.criteria)
    return is_open and verdict.outcome != "fail" and verdict.rounds < policy.max_rounds


# --- criteria that are counted ------------------------------------------------------------------------------


def _answers(policy: GatePolicy, evidence: Evidence) -> CriterionVerdict:
    new, old = evidence.new_right, evidence.old_right
    count, limit = len(new), policy.answers
    if not count:
        return _unmeasured("answers", "the package holds no golden prompts", limit)
    # Where nothing runs yet, everything counts as right before.
    before = old if old is not None else (True,) * count
    worse = sum(was and not now for was, now in zip(before, new, strict=True))
    failed = limit is not None and worse >= limit * count and worse > 0
    return CriterionVerdict(
        name="answers",
        outcome="fail" if failed else "pass",
        old=None if old is None else round(sum(old) / count, 6),
        new=round(sum(new) / count, 6),
        change=round(worse / count, 6),
        limit=limit,
        note=f"{worse} of {count} went wrong" if worse else "",
    )


def _memory(policy: GatePolicy, evidence: Evidence) -> CriterionVerdict:
    new, old, limit = evidence.new_peak_mb, evidence.old_peak_mb, policy.memory
    if new is None or old is None or limit is None:
        reason = "not judged" if limit is None else "nothing to compare with"
        return _unmeasured("memory", reason, limit, new=new, old=old)
    return CriterionVerdict(
        name="memory",
        outcome="fail" if new >= old * (1.0 + limit) + _MEMORY_SLACK_MB else "pass",
        old=round(old, 1),
        new=round(new, 1),
        change=round(new / old - 1.0, 4),
        limit=limit,
    )


# --- criteria that are measured -----------------------------------------------------------------------------


def _timing(name: Criterion, policy: GatePolicy, evidence: Evidence) -> CriterionVerdict:
    if policy.speed is None:
        return _unmeasured(name, "not judged", None)
    if evidence.old_right is None:
        return _unmeasured(name, "nothing runs yet that it could be compared with", policy.speed)
    pairs = [(_mean(_timings(name, item.old)), _mean(_timings(name, item.new))) for item in evidence.rounds]
    if evidence.rounds and not _ratios(pairs):
        return _unmeasured(name, "answers have a single token", policy.speed)
    return _compare(name, pairs, policy.speed, policy)


def _timings(name: Criterion, blocks: Iterable[Block]) -> list[float | None]:
    return [block.ttft_s if name == "ttft" else block.token_s for block in blocks]


def _energy(policy: GatePolicy, evidence: Evidence) -> CriterionVerdict:
    limit = policy.energy
    if limit is None:
        return _unmeasured("energy", "not judged", None)
    if evidence.old_right is None:
        return _unmeasured("energy", "nothing runs yet that it could be compared with", limit)
    pairs = [
        (_mean(block.energy_j for block in item.old), _mean(block.energy_j for block in item.new))
        for item in evidence.rounds
    ]
    meter = _weakest(evidence.rounds)
    if evidence.rounds and (meter is None or not _ratios(pairs)):
        return _unmeasured("energy", "no meter", limit)
    if meter == "estimated":
        old = _typical(old for old, _ in pairs)
        new = _typical(new for _, new in pairs)
        return _unmeasured("energy", "the only meter is an estimate", limit, old=old, new=new)
    return _compare("energy", pairs, limit, policy)


def _ratios(pairs: Sequence[_Pair]) -> list[tuple[float, float]]:
    """The pairs that have a ratio: both are known and above 0."""
    return [(old, new) for old, new in pairs if old is not None and new is not None and min(old, new) > 0]


def _compare(name: Criterion, pairs: Sequence[_Pair], limit: float, policy: GatePolicy) -> CriterionVerdict:
    changes = [math.log(new / old) for old, new in _ratios(pairs)]
    middle = math.log1p(limit) / 2
    outcome: CriterionOutcome = "inconclusive"
    bounds: tuple[float, float, float] | None = None
    schedule = looks(policy)
    for count in schedule:
        if count > len(changes):
            break
        bounds = _bounds(changes[:count], _ERROR / len(schedule))
        if bounds[2] < middle or bounds[0] > middle:
            outcome = "pass" if bounds[2] < middle else "fail"
            break
    found = [None if bounds is None else round(math.expm1(value), 4) for value in bounds or (0.0,) * 3]
    return CriterionVerdict(
        name=name,
        outcome=outcome,
        old=_typical(old for old, _ in pairs),
        new=_typical(new for _, new in pairs),
        change=found[1],
        low=found[0],
        high=found[2],
        limit=limit,
        note="" if outcome != "inconclusive" else _what_would_decide(bounds, middle, len(changes)),
    )


def _what_would_decide(bounds: tuple[float, float, float] | None, middle: float, count: int) -> str:
    if bounds is None:
        return f"{count} undisturbed rounds are too few"
    distance = abs(bounds[1] - middle)
    needed = count * (0.5 * (bounds[2] - bounds[0]) / max(distance, 1e-4)) ** 2
    return (
        f"about {math.ceil(needed)} rounds would decide" if needed < 1000 else "too close to half the limit"
    )


def _bounds(values: Sequence[float], error: float) -> tuple[float, float, float]:
    """Lower bound, trimmed mean and upper bound; each bound is missed with the chance `error`."""
    count = len(values)
    cut = int(_TRIMMED * count)
    ordered = sorted(values)
    core = ordered[cut : count - cut]
    mean = math.fsum(core) / len(core)
    winsorized = [core[0]] * cut + core + [core[-1]] * cut
    spread = math.sqrt((count - 1) * statistics.variance(winsorized) / (len(core) * (len(core) - 1)))
    reach = student_t(1.0 - error, len(core) - 1) * spread
    return mean - reach, mean, mean + reach


def student_t(share: float, freedom: int) -> float:
    """The quantile `share` of Student's t distribution.

    Expansion in 1/freedom: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5. Off by 2 % at 3
    degrees of freedom and a share of 0.99, by 0.1 % at 6.
    """
    x = statistics.NormalDist().inv_cdf(share)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92_160,
    )
    return x + math.fsum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


# --- small parts --------------------------------------------------------------------------------------------


def _unmeasured(
    name: Criterion, note: str, limit: float | None, *, old: float | None = None, new: float | None = None
) -> CriterionVerdict:
    return CriterionVerdict(name=name, outcome="not_measured", old=old, new=new, limit=limit, note=note)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _typical(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 6) if known else None


def _weakest(rounds: Iterable[Round]) -> MeterClass | None:
    """The weakest class that any energy rests on."""
    order: tuple[MeterClass, ...] = ("estimated", "calibrated", "measured")
    found = {block.meter for item in rounds for block in (*item.old, *item.new)}
    return next((meter for meter in order if meter in found), None)
