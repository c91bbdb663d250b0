"""How much energy high priority will ask for, learned; and what that leaves to the rest.

A fixed share cannot be right: what is kept and not asked for is lost, and what is asked for and not kept is an alarm
that comes too late. So the demand of high priority is watched over several spans of time, as in network calculus an
arrival curve: the most that came within half a minute, five minutes, an hour and so on. Work of less priority may
spend what still leaves, for each of these spans, that much by its end, counting what leaves the window until then.

Values only, times passed in. Joules are net.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from edgeslm.power.windows import Room

SPANS_S: Final = (20.0, 60.0, 300.0, 3600.0, 21_600.0, 86_400.0, 604_800.0)

_PARTS: Final = 8
_MORE: Final = 1.25
"""The next burst may be larger than any before it: by a quarter, and by a prompt."""
_HALF_LIFE_S: Final = 7 * 86_400.0
_MOST_SHARE: Final = 0.5
"""However much high priority asks for, the rest can have this share of a window: nobody starves."""
_UNSEEN_PROMPTS: Final = 2.0
_SLACK_RISE: Final = 0.02
_SLACK_SHARE: Final = 0.5
"""The rest of its slack high priority spends behind the prompt that is running and behind others of its kind."""

Steps = tuple[tuple[float, float], ...]
"""Pairs: from so many seconds ahead on, up to the next pair, so many joules may have been asked for."""


@dataclass(frozen=True, slots=True)
class SpanDemand:
    """What was asked for within a span.

    Attributes:
        part: number of the newest part of the span's length by eight.
        sums_j: joules of the newest parts, oldest first; together at least one span.
        peak_j: most that one span held, fading over weeks.
    """

    part: int = 0
    sums_j: tuple[float, ...] = (0.0,) * (_PARTS + 1)
    peak_j: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of the demand.

    Attributes:
        noted_s: monotonic time of the last prompt; peaks fade from there.
        typical_j: running mean of what a prompt needs, of high priority once there was one.
        high_seen: whether there was.
        slack_s: seconds that high priority can wait for energy and still be in time.
    """

    spans: tuple[SpanDemand, ...] = (SpanDemand(),) * len(SPANS_S)
    noted_s: float = 0.0
    typical_j: float = 0.0
    high_seen: bool = False
    slack_s: float = 0.0

    def state(self) -> dict[str, object]:
        """What :func:`restore` takes."""
        peaks_j = [span.peak_j for span in self.spans]
        return {
            "peaks_j": peaks_j,
            "typical_j": self.typical_j,
            "high_seen": self.high_seen,
            "slack_s": self.slack_s,
        }


def restore(state: Mapping[str, object], now_s: float) -> Demand:
    """What was learned before a restart; nothing where `state` is not of that form."""
    peaks_j = state.get("peaks_j")
    typical_j, slack_s = _number(state.get("typical_j")), _number(state.get("slack_s"))
    if not isinstance(peaks_j, list) or len(peaks_j) != len(SPANS_S) or typical_j is None or slack_s is None:
        return Demand(noted_s=now_s)
    found = [_number(peak_j) for peak_j in peaks_j]
    spans = tuple(SpanDemand(peak_j=peak_j) for peak_j in found if peak_j is not None)
    if len(spans) != len(SPANS_S):
        return Demand(noted_s=now_s)
    return Demand(spans, now_s, typical_j, state.get("high_seen") is True, slack_s)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < float("inf") else None


def note(demand: Demand, now_s: float, energy_j: float, *, high: bool, slack_s: float = 0.0) -> Demand:
    """After a prompt that needs `energy_j` was accepted at `now_s`.

    Args:
        slack_s: seconds that it can wait and still be in time.
    """
    if not high and demand.high_seen:
        return demand
    first = demand.typical_j == 0.0 or (high and not demand.high_seen)
    typical_j = energy_j if first else demand.typical_j + 0.1 * (energy_j - demand.typical_j)
    if not high:
        return replace(demand, typical_j=typical_j)
    if demand.high_seen and slack_s > demand.slack_s:
        slack_s = demand.slack_s + _SLACK_RISE * (slack_s - demand.slack_s)
    faded = _faded(demand, now_s)
    spans = tuple(
        _note_span(span, length_s / _PARTS, now_s, energy_j, faded)
        for span, length_s in zip(demand.spans, SPANS_S, strict=True)
    )
    return Demand(spans, now_s, typical_j, high_seen=True, slack_s=max(0.0, slack_s))


def _note_span(span: SpanDemand, width_s: float, now_s: float, energy_j: float, faded: float) -> SpanDemand:
    part = int(now_s // width_s)
    passed = min(max(part - span.part, 0), _PARTS + 1)
    sums_j = (*span.sums_j[passed:], *(0.0,) * passed)
    sums_j = (*sums_j[:-1], sums_j[-1] + energy_j)
    return SpanDemand(part, sums_j, max(span.peak_j * faded, sum(sums_j)))


def _faded(demand: Demand, now_s: float) -> float:
    return float(0.5 ** (max(0.0, now_s - demand.noted_s) / _HALF_LIFE_S))


def expected_demand(demand: Demand, now_s: float) -> Steps:
    """How much high priority may ask for within the time ahead."""
    if not demand.high_seen:
        return ((0.0, _UNSEEN_PROMPTS * demand.typical_j),)
    faded = _faded(demand, now_s)
    starts_s = (0.0, *SPANS_S[:-1])
    return tuple(
        (start_s + _SLACK_SHARE * demand.slack_s, _MORE * span.peak_j * faded + demand.typical_j)
        for start_s, span in zip(starts_s, demand.spans, strict=True)
    )


def held_steps(room: Room, steps: Steps) -> Steps:
    """Those of `steps` that reach into `room`, none of them more than its part."""
    most_j = _MOST_SHARE * max(0.0, room.capacity_j)
    return tuple((start_s, min(demand_j, most_j)) for start_s, demand_j in steps if start_s < room.over_s)


def kept_j(room: Room, steps: Steps) -> float:
    """Joules of `room` that must stay free now, so that all of `steps` can be met in time."""
    kept = 0.0
    for start_s, demand_j in steps:
        kept = max(kept, demand_j - (room.free_by(start_s) - room.free_j))
    return kept


def wait_s(room: Room, need_j: float, steps: Steps) -> float:
    """Seconds until `need_j` may be spent beside all of `steps`; infinite if that never fits."""
    longest_s = room.wait_s(need_j)
    for start_s, demand_j in steps:
        longest_s = max(longest_s, room.wait_s(need_j + demand_j) - start_s)
    return longest_s
