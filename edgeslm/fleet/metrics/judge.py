"""Whether a report can be true, when it was, and whether it was here before. Pure: values in, a judgement out.

A report is counted, passed over, or impossible. What is impossible is never counted, and a device that goes on with it
is put into quarantine by whoever asks. The limits leave room for poor meters, odd loads and clocks that are a little
off; what they refuse no honest device says:

- figures that are no numbers, below zero where nothing can be, or not in their order (lowest, mean, highest);
- more watts than the board's supply can give, by half;
- joules that the lowest or the highest watts of the same report rule out;
- the time of a report more than an hour ahead;
- the name of another device;
- a sequence that falls although too little time passed for a restart and as many reports since.

A clock that is not set, or up to an hour ahead, is no fault: the time of arrival counts instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from edgeslm.clock import clock_is_set
from edgeslm.errors import CodecError
from edgeslm.schema.board import Board
from edgeslm.schema.metrics import (
    Event,
    InferenceMetrics,
    Metrics,
    ModelMetrics,
    PowerMetrics,
    PowerPoint,
    SystemMetrics,
)

AHEAD_S: Final = 3600.0
"""A report that is dated further ahead is impossible; up to here its clock is wrong, and the arrival counts."""
LONGEST_SPAN_S: Final = 7 * 86_400.0
MOST_W: Final = 10_000.0
"""Where nothing is known of the board."""
_SUPPLY_FACTOR: Final = 1.5
_TABLE_FACTOR: Final = 3.0
_ENERGY_SLACK_J: Final = 1.0
_ENERGY_FACTOR: Final = 1.1
_MEAN_SLACK: Final = 0.1
_MEAN_SLACK_W: Final = 0.05
_RESTART_SLACK_S: Final = 120.0
_RESTART_SHARE: Final = 0.5
_COLDEST_C: Final = -60.0
_HOTTEST_C: Final = 150.0
_MOST_TPS: Final = 1e6
_MOST_COUNT: Final = 2**31
_MOST_SEQ: Final = 2**53
_MOST: Final = 1e15
_TOLD_CHARS: Final = 40
_LEAST_YEAR: Final = 1970
_NEVER_BELOW_ZERO: Final = ("error_share", "idle_w", "energy_j", "today_j", "co2_g")
_COUNTS: Final = (
    "answered",
    "failed",
    "refused",
    "deferred",
    "shortened",
    "prompt_tokens",
    "completion_tokens",
)


class ImpossibleFigure(Exception):  # noqa: N818 - what a report holds, not a failure of ours; never leaves the package
    """A report that cannot be true; the text continues "the device ..."."""


@dataclass(frozen=True, slots=True)
class Last:
    """The newest report of one sort.

    Attributes:
        own_ms: as the device stamped it.
    """

    seq: int
    own_ms: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A report that counts.

    Attributes:
        at_ms: when its span ended.
        own_ms: the same as the device stamped it.
        is_newest: nothing newer of its sort is known.
        lost: reports before it that never arrived.
        is_dated_here: the time of arrival was taken, since the device's clock is not to be used.
    """

    at_ms: int
    own_ms: int
    is_newest: bool = True
    lost: int = 0
    is_dated_here: bool = False


def ceiling_w(board: Board | None) -> float:
    """Watts that a board cannot draw, whatever hangs on it."""
    if board is None:
        return MOST_W
    power = board.power
    if power.supply_w is not None:
        return _SUPPLY_FACTOR * power.supply_w
    if board.cores is not None:
        return _TABLE_FACTOR * (power.idle_w + board.cores * power.core_load_w)
    return MOST_W


def stamp_ms(text: str) -> int:
    """Unix time in milliseconds of what a device writes under ``at``.

    Raises:
        CodecError: it is no time with a zone.
    """
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None or at.year < _LEAST_YEAR:
            raise ValueError
        return round(at.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise CodecError(f"at: '{text[:_TOLD_CHARS]}' is no time with a zone") from error


def judge(report: Metrics, device: str, last: Last | None, *, now_ms: int, oldest_ms: int) -> Counted | None:
    """When a report was, and whether it counts.

    Args:
        report: one whose figures were checked.
        device: who sent it, by the topic.
        last: the newest report of the same sort from it.
        now_ms: of arrival.
        oldest_ms: what was before is not kept any more.

    Returns:
        ``None`` for a report that was here before, or is too old.

    Raises:
        CodecError: its time is none.
        ImpossibleFigure: it cannot be true.
    """
    _check_name(report.device, device)
    own_ms, seq = stamp_ms(report.at), report.seq
    if seq >= _MOST_SEQ:
        raise ImpossibleFigure("counts further than anybody can")
    if not math.isfinite(report.span_s) or report.span_s > LONGEST_SPAN_S:
        raise ImpossibleFigure(f"reports on {report.span_s:g} s at once")
    ahead_s = (own_ms - now_ms) / 1000
    if report.clock_set and ahead_s > AHEAD_S:
        raise ImpossibleFigure(f"dates a report {ahead_s / 3600:.3g} h ahead")
    is_dated_here = not report.clock_set or ahead_s > 0 or not clock_is_set(own_ms / 1000)
    at_ms = now_ms if is_dated_here else own_ms
    if at_ms < oldest_ms:
        return None
    if last is None or seq > last.seq:
        lost = 0 if last is None else seq - last.seq - 1
        return Counted(at_ms, own_ms, lost=lost, is_dated_here=is_dated_here)
    passed_s = (own_ms - last.own_ms) / 1000
    if passed_s > 0:
        if seq * report.span_s * _RESTART_SHARE > passed_s + _RESTART_SLACK_S:
            raise ImpossibleFigure(
                f"counts backwards, {seq} after {last.seq}, {passed_s:.0f} s later: "
                "no restart, or two devices of one name"
            )
        return Counted(at_ms, own_ms, is_dated_here=is_dated_here)
    if seq == 0 and is_dated_here and (seq, own_ms) != (last.seq, last.own_ms):
        return Counted(
            at_ms, own_ms, is_dated_here=True
        )  # a restart on a board whose clock begins anew as well
    if is_dated_here or (seq, own_ms) == (last.seq, last.own_ms):
        return None
    return Counted(at_ms, own_ms, is_newest=False)


def judge_event(event: Event, device: str, *, now_ms: int, oldest_ms: int) -> int | None:
    """When an event was, in milliseconds; ``None`` if it is too old. Its clock is taken as that of reports.

    Raises:
        CodecError: its time is none.
        ImpossibleFigure: it names another device, or a time far ahead.
    """
    _check_name(event.device, device)
    own_ms = stamp_ms(event.at)
    if (own_ms - now_ms) / 1000 > AHEAD_S:
        raise ImpossibleFigure(f"dates an event {(own_ms - now_ms) / 3.6e6:.3g} h ahead")
    at_ms = min(own_ms, now_ms) if clock_is_set(own_ms / 1000) else now_ms
    return at_ms if at_ms >= oldest_ms else None


def _check_name(said: str, device: str) -> None:
    if said != device:
        raise ImpossibleFigure(f"reports as '{said[:_TOLD_CHARS]}'")


# --- figures ------------------------------------------------------------------------------------------------


def check_power(report: PowerMetrics, most_w: float) -> None:
    """Whether the figures can be those of a board that draws `most_w` at most.

    Raises:
        ImpossibleFigure: they cannot.
    """
    for name in _NEVER_BELOW_ZERO:
        _check_amount(name, getattr(report, name))
    if report.cost is not None and not abs(report.cost) < _MOST:
        raise ImpossibleFigure("tells a cost that is no number")
    for share in report.causes:
        _check_amount(f"energy_j of {share.cause[:_TOLD_CHARS]}", share.energy_j)
    for window in report.windows:
        _check_amount("used_j", window.used_j)
        _check_amount("limit_j", window.limit_j)
        if not (window.limit_j > 0 and window.window_s > 0 and abs(window.left_share) < _MOST):
            raise ImpossibleFigure(f"has a budget of {window.limit_j:g} J in {window.window_s:g} s")
    battery = report.battery
    if battery is not None and not -0.01 <= battery.share <= 1.01:
        raise ImpossibleFigure(f"has a battery at {battery.share:.0%}")
    for point in report.points:
        _check_point(point)
    _check_energy(report, most_w)


def _check_point(point: PowerPoint) -> None:
    low_w, mean_w, high_w = point.min_w, point.mean_w, point.max_w
    if not abs(point.ago_s) <= LONGEST_SPAN_S:
        raise ImpossibleFigure(f"tells its draw of {point.ago_s:g} s ago")
    # The mean is made of joules and the ends of single looks: what happened between two looks is in the one alone, so
    # the mean of a steady draw may lie outside.
    slack_w = _MEAN_SLACK * high_w + _MEAN_SLACK_W
    if 0 <= low_w <= high_w and low_w - slack_w <= mean_w <= high_w + slack_w < _MOST and mean_w >= 0:
        return
    if min(low_w, mean_w, high_w) < 0:
        raise ImpossibleFigure(f"draws {min(low_w, mean_w, high_w):g} W")
    raise ImpossibleFigure(f"draws between {low_w:g} and {high_w:g} W, {mean_w:g} W in the mean")


def _check_energy(report: PowerMetrics, most_w: float) -> None:
    """Whether draw is one of the board, and joules are those of the draw."""
    energy_j, span_s, points = report.energy_j, report.span_s, report.points
    cannot = f"a board of its kind cannot draw {most_w:g} W"
    greatest_w = max((point.max_w for point in points), default=most_w)
    if greatest_w > most_w:
        raise ImpossibleFigure(f"draws {greatest_w:g} W; {cannot}")
    if energy_j > most_w * span_s * _ENERGY_FACTOR + _ENERGY_SLACK_J:
        raise ImpossibleFigure(f"spends {energy_j:g} J in {span_s:g} s; {cannot}")
    if not points:
        return
    if energy_j > greatest_w * span_s * _ENERGY_FACTOR + _ENERGY_SLACK_J:
        raise ImpossibleFigure(f"spends {energy_j:g} J in {span_s:g} s, at {greatest_w:g} W at most")
    # Parts may be missing, where nobody measured: half of what lies between the ends has to be there.
    least_w, times_s = min(point.min_w for point in points), [point.ago_s for point in points]
    covered_s = min(max(times_s) - min(times_s), span_s)
    if energy_j < least_w * covered_s / 2 - _ENERGY_SLACK_J:
        raise ImpossibleFigure(f"spends {energy_j:g} J in {covered_s:g} s, at {least_w:g} W at least")


def check_inference(report: InferenceMetrics) -> None:
    """Whether the figures can be.

    Raises:
        ImpossibleFigure: they cannot.
    """
    _check_count("waiting", report.waiting)
    for model in report.models:
        _check_model(model)


def _check_model(model: ModelMetrics) -> None:
    for name in _COUNTS:
        _check_count(name, getattr(model, name))
    _check_amount("energy_j", model.energy_j)
    if not abs(model.net_j) < _MOST or model.net_j > model.energy_j * 1.01 + _ENERGY_SLACK_J:
        raise ImpossibleFigure(f"answers with {model.net_j:g} J above idle of {model.energy_j:g} J in all")
    if model.decode_tps is not None and not 0 <= model.decode_tps <= _MOST_TPS:
        raise ImpossibleFigure(f"generates {model.decode_tps:g} tokens a second")
    _check_amount("ttft_ms", model.ttft_ms)


def check_system(report: SystemMetrics) -> None:
    """Whether the figures can be.

    Raises:
        ImpossibleFigure: they cannot.
    """
    for name in ("uptime_s", "frequency_mhz", "busy_cores", "rss_mb", "memory_free_mb", "disk_free_mb"):
        _check_amount(name, getattr(report, name))
    temperature_c = report.temperature_c
    if temperature_c is not None and not _COLDEST_C <= temperature_c <= _HOTTEST_C:
        raise ImpossibleFigure(f"is at {temperature_c:g} C")


def _check_amount(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < _MOST:
        raise ImpossibleFigure(f"tells {name} {value:g}")


def _check_count(name: str, value: int) -> None:
    if not 0 <= value < _MOST_COUNT:
        raise ImpossibleFigure(f"tells {name} {str(value)[:_TOLD_CHARS]}")
