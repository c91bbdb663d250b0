"""Chance that can be asked in any order: numbers that follow from a seed and a place, with no state in between.

What always holds: the same seed and place give the same number, on every machine and in every run. A simulation
may therefore jump ahead, run in other steps or be looked at more often, and meets the same clouds and the same noise.

The mixing is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import math

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def share(seed: int, *place: int) -> float:
    """A number in [0, 1), uniform over places."""
    mixed = _mix((seed + _STEP) & _MASK)
    for key in place:
        mixed = _mix(((mixed ^ key) + _STEP) & _MASK)
    return (mixed >> 11) * (1.0 / (1 << 53))


def bell(seed: int, *place: int) -> float:
    """A number around 0 with deviation 1, normal over places."""
    radius = math.sqrt(-2.0 * math.log(1.0 - share(seed, *place, 0)))
    return radius * math.cos(math.tau * share(seed, *place, 1))


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
