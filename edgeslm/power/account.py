"""Energy accounting: one stream of meter readings, any number of spans of work, every joule in one place.

What always holds:

* the shares of all settlements sum to the energy of all settlements, which is the meter's total;
* processor time is divided, never counted twice: spans open at once share what the process burnt, what it burnt
  outside any span is the agent's, and what the rest of the board burnt is ``other``;
* a span can be asked at any moment. What is settled is what the meter said; the rest is expected from the learned
  draw of the board and told as such by its class.

Thread-safe. Beginning, asking and ending a span cost microseconds; nothing here reads a file or waits.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgeslm.power.attribution import CauseKind, Draw, EndedSpan, EnergySum, Interval, Settlement, Share
from edgeslm.power.baseline import CALM_CORES, CoreDraw, IdleDraw
from edgeslm.power.integrate import Integrator, Piece, weakest
from edgeslm.power.port import Cause, CpuTimes, EnergyReading, MeterFacts, Reading
from edgeslm.schema.board import PowerTable
from edgeslm.schema.message import MeterClass

PERIOD_S = 0.1
"""Seconds between samples."""

_BRIDGE_AFTER_S = 60.0
_BLOCK_S = 1.0
_CALM_BLOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class PowerSample:
    """One look at the board.

    Attributes:
        reading: latest value of the meter believed most.
        facts: of that meter.
        cpu: processor time at the same moment; ``None`` where the board does not tell.
    """

    reading: Reading
    facts: MeterFacts
    cpu: CpuTimes | None


class AccountedSpan:
    """``EnergySpan`` of an :class:`EnergyAccount`."""

    __slots__ = (
        "_account",
        "began_s",
        "cause",
        "ended_s",
        "energies_j",
        "net_j",
        "open_cpu_s",
        "open_s",
        "paused_s",
        "pauses_s",
    )

    def __init__(self, account: EnergyAccount, cause: Cause, began_s: float) -> None:
        """Begin."""
        self._account = account
        self.cause = cause
        self.began_s = began_s
        self.ended_s: float | None = None
        self.paused_s: float | None = None
        """When it was paused, while it is."""
        self.pauses_s = 0.0
        self.energies_j: dict[MeterClass, float] = {}
        self.net_j = 0.0
        self.open_s = 0.0
        self.open_cpu_s = 0.0

    def so_far(self) -> EnergyReading:
        """Energy since it began."""
        return self._account.reading(self)

    def pause(self) -> None:
        """See ``EnergySpan``."""
        self._account.pause(self)

    def go_on(self) -> None:
        """See ``EnergySpan``."""
        self._account.go_on(self)

    def end(self) -> EnergyReading:
        """Energy from begin to now; closes the span."""
        return self._account.reading(self, end=True)

    def seconds(self, until_s: float) -> float:
        """From its begin to `until_s`, or to its end; without pauses."""
        until_s = until_s if self.ended_s is None else self.ended_s
        pause_s = 0.0 if self.paused_s is None else until_s - self.paused_s
        return until_s - self.began_s - self.pauses_s - pause_s

    def settle(self, energy_j: float, net_j: float, meter: MeterClass) -> None:
        """Charge what the open part turned out to cost, and begin a new one."""
        self.energies_j[meter] = self.energies_j.get(meter, 0.0) + energy_j
        self.net_j += net_j
        self.open_s = self.open_cpu_s = 0.0


@dataclass(slots=True)
class _Activity:
    """What happened on the board since the last settlement.

    Attributes:
        idle_s: wall time without a span.
        agent_cpu_s: core seconds of this process in it.
        work_s: wall time with spans.
        work_cpu_s: core seconds of this process in it.
        other_cpu_s: core seconds of other processes.
    """

    idle_s: float = 0.0
    agent_cpu_s: float = 0.0
    work_s: float = 0.0
    work_cpu_s: float = 0.0
    other_cpu_s: float = 0.0

    @property
    def wall_s(self) -> float:
        return self.idle_s + self.work_s

    @property
    def busy_s(self) -> float:
        return self.agent_cpu_s + self.work_cpu_s + self.other_cpu_s


@dataclass(slots=True)
class _Block:
    """Settled stretches summed up until there is enough to learn from."""

    seconds: float = 0.0
    busy_s: float = 0.0
    energy_j: float = 0.0
    count: int = 0

    def add(self, seconds: float, busy_s: float, energy_j: float) -> None:
        self.seconds += seconds
        self.busy_s += busy_s
        self.energy_j += energy_j
        self.count += 1

    def error_w(self, noise_w: float) -> float:
        """Error of the mean draw, of values that each scatter by `noise_w`."""
        return noise_w / math.sqrt(self.count)


class EnergyAccount:
    """``EnergyMeter`` over whatever meter is sampled; see the module."""

    def __init__(
        self,
        table: PowerTable,
        *,
        state: Mapping[str, object] | None = None,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Start without a reading.

        Args:
            table: prior of the draw at rest and of a busy core.
            state: what :meth:`state` gave before a restart.
            period_s: seconds between samples as planned.
            clock: monotonic seconds.
            cpu_clock: core seconds of this process, all its threads.
        """
        self._lock = threading.Lock()
        self._clock = clock
        self._cpu_clock = cpu_clock
        state = state or {}
        idle = IdleDraw(table.idle_w).restore(state)
        self._draw = Draw(idle, CoreDraw(table.core_load_w).restore(state), calm_w=idle.idle_w)
        self._facts: MeterFacts | None = None
        self._integrator = Integrator(period_s)
        self._settled_j = 0.0
        self._told_j = 0.0
        self._told_s: float | None = None
        self._open: list[AccountedSpan] = []
        self._paused: list[AccountedSpan] = []
        self._ended: list[AccountedSpan] = []
        self._tick_s = clock()
        self._tick_cpu_s = cpu_clock()
        self._since = _Activity()
        self._others_mark_s: float | None = None
        self._block = _Block()
        self._calm = _Block()

    @property
    def meter_class(self) -> MeterClass:
        """Class of the meter heard last."""
        facts = self._facts
        return "estimated" if facts is None else facts.meter_class

    @property
    def facts(self) -> MeterFacts | None:
        """Of the meter heard last; ``None`` before the first sample."""
        return self._facts

    @property
    def draw(self) -> Draw:
        """What was learned of the board."""
        return self._draw

    @property
    def total_j(self) -> float:
        """Joules of the whole board since the first sample, as told in intervals."""
        return self._told_j

    @property
    def told(self) -> tuple[float | None, float]:
        """Monotonic time up to which :attr:`total_j` is told (``None`` before the first sample), and that total."""
        with self._lock:
            return self._told_s, self._told_j

    def state(self) -> dict[str, object]:
        """What was learned, for the next start."""
        draw = self._draw
        return {**draw.idle.state(), **draw.core.state()}

    def begin(self, cause: Cause) -> AccountedSpan:
        """Work begins."""
        with self._lock:
            self._tick()
            span = AccountedSpan(self, cause, self._tick_s)
            self._open.append(span)
            return span

    def reading(self, span: AccountedSpan, *, end: bool = False) -> EnergyReading:
        """Energy of `span` from its begin to now, or to its end; `end` closes it."""
        with self._lock:
            self._tick()
            if end and span.ended_s is None:
                span.ended_s = self._tick_s
                (self._open if span.paused_s is None else self._paused).remove(span)
                self._ended.append(span)
            draw = self._draw
            net_j = draw.core.core_w * span.open_cpu_s
            expected_j = draw.idle.idle_w * span.open_s + net_j
            meter = draw.core.meter_class
            energies_j = {**span.energies_j, meter: span.energies_j.get(meter, 0.0) + expected_j}
            energy_j = sum(energies_j.values())
            seconds = max(span.seconds(self._tick_s), 1e-6)
            return EnergyReading(
                energy_j, span.net_j + net_j, energy_j / seconds, weakest(energies_j.items())
            )

    def pause(self, span: AccountedSpan) -> None:
        """Charge `span` with nothing from now on."""
        with self._lock:
            self._tick()
            if span in self._open:
                self._open.remove(span)
                self._paused.append(span)
                span.paused_s = self._tick_s

    def go_on(self, span: AccountedSpan) -> None:
        """Charge `span` again."""
        with self._lock:
            self._tick()
            if span in self._paused and span.paused_s is not None:
                self._paused.remove(span)
                self._open.append(span)
                span.pauses_s += self._tick_s - span.paused_s
                span.paused_s = None

    def observe(self, sample: PowerSample | None) -> Interval | None:
        """Take a sample, or note that there was none to be had.

        Returns:
            The time since the sample before; ``None`` for the first.
        """
        with self._lock:
            self._tick()
            if sample is None:
                piece = None
            else:
                if self._facts is None or self._facts.name != sample.facts.name:
                    self._draw = replace(self._draw, noise_w=sample.facts.error_w)
                self._facts = sample.facts
                self._count_others(sample.cpu)
                first = self._integrator.until_s is None
                piece = self._integrator.advance(
                    sample.reading, sample.facts, self._tick_s, self._expected_w()
                )
                if first:
                    self._start()
            silent_s = self._tick_s - (self._integrator.until_s or self._tick_s)
            if piece is None and silent_s > max(_BRIDGE_AFTER_S, self._integrator.stall_s):
                # Without a word from any meter for so long, what is expected has to do.
                piece = self._integrator.bridge(self._tick_s, self._expected_w())
            return self._tell(piece, None if sample is None else sample.reading.power_w)

    def close(self) -> Interval | None:
        """Settle what is open with what is expected of it, so that nothing is lost with the process."""
        with self._lock:
            self._tick()
            return self._tell(self._integrator.bridge(self._tick_s, self._expected_w()), None)

    # Everything below runs under the lock.

    def _tick(self) -> None:
        """Divide wall and processor time since the last tick among what is open."""
        now_s, cpu_s = self._clock(), self._cpu_clock()
        wall_s, busy_s = now_s - self._tick_s, cpu_s - self._tick_cpu_s
        self._tick_s, self._tick_cpu_s = now_s, cpu_s
        if self._open:
            self._since.work_s += wall_s
            self._since.work_cpu_s += busy_s
            count = len(self._open)
            for span in self._open:
                span.open_s += wall_s / count
                span.open_cpu_s += busy_s / count
        else:
            self._since.idle_s += wall_s
            self._since.agent_cpu_s += busy_s

    def _count_others(self, cpu: CpuTimes | None) -> None:
        """Processor time of the rest of the board.

        The kernel counts the board's in ticks of 10 ms and ours exactly, so the difference wobbles by some ticks. Its
        highest mark so far does not, and over time it gains nothing.
        """
        if cpu is None:
            return
        others_s = cpu.busy_s - cpu.process_s
        if self._others_mark_s is not None:
            self._since.other_cpu_s += max(others_s - self._others_mark_s, 0.0)
            others_s = max(others_s, self._others_mark_s)
        self._others_mark_s = others_s

    def _spans(self) -> list[AccountedSpan]:
        return self._open + self._paused + self._ended

    def _expected_w(self) -> float:
        """Mean draw since the last settlement as the learned draw has it."""
        since = self._since
        return self._draw.expected_j(since.wall_s, since.busy_s) / since.wall_s if since.wall_s > 0 else 0.0

    def _start(self) -> None:
        """The first reading: what spans took before it no meter will ever tell."""
        draw = self._draw
        for span in self._spans():
            net_j = draw.core.core_w * span.open_cpu_s
            span.settle(draw.idle.idle_w * span.open_s + net_j, net_j, draw.core.meter_class)
        self._ended.clear()
        self._since = _Activity()

    def _tell(self, piece: Piece | None, power_w: float | None) -> Interval | None:
        settlement = None if piece is None else self._settle(piece)
        start_s, until_s = self._told_s, self._integrator.until_s
        self._told_s = None if until_s is None else self._tick_s
        if start_s is None or until_s is None:
            return None
        tail_s = max(self._tick_s - until_s, 0.0)
        due_j = self._settled_j + self._expected_w() * tail_s
        energy_j = max(due_j - self._told_j, 0.0)
        self._told_j += energy_j
        return Interval(
            start_s,
            self._tick_s,
            energy_j,
            energy_j / max(self._tick_s - start_s, 1e-6) if power_w is None else power_w,
            self._draw.core.meter_class if settlement is None else settlement.meter,
            settlement,
        )

    def _settle(self, piece: Piece) -> Settlement:
        """Divide `piece` among all that happened since the last settlement."""
        draw, seconds = self._draw, piece.end_s - piece.start_s
        since, self._since = self._since, _Activity()
        wall_s, busy_s = since.wall_s, since.busy_s
        meter = piece.meter
        if piece.bridged_j > 0:
            spoken_j = piece.energy_j - piece.bridged_j
            meter = weakest([(meter, spoken_j), (draw.core.meter_class, piece.bridged_j)])
        division = draw.divide(seconds, piece.energy_j, piece.step_j, busy_s)
        per_core_s = division.busy_j / busy_s if busy_s > 0 else 0.0
        idle_w = division.idle_j / wall_s if wall_s > 0 else 0.0

        shares: dict[tuple[CauseKind, str | None, str | None], EnergySum] = {}
        idle_j, idle_s = division.idle_j, seconds
        for span in self._spans():
            net_j = per_core_s * span.open_cpu_s
            energy_j = idle_w * span.open_s + net_j
            own_s = seconds * span.open_s / wall_s if wall_s > 0 else 0.0
            key = (span.cause.kind, span.cause.model, span.cause.rule)
            shares.setdefault(key, EnergySum()).add(energy_j, net_j, own_s)
            idle_j -= energy_j - net_j
            idle_s -= own_s
            span.settle(energy_j, net_j, meter)
        agent_j = per_core_s * since.agent_cpu_s
        other_j = per_core_s * since.other_cpu_s + division.unexplained_j
        shares["idle", None, None] = EnergySum(max(idle_j, 0.0), 0.0, max(idle_s, 0.0))
        shares["agent", None, None] = EnergySum(agent_j, agent_j, 0.0)
        shares["other", None, None] = EnergySum(other_j, other_j, 0.0)
        if piece.bridged_j == 0:
            self._learn(seconds, piece.energy_j, busy_s, piece.meter, worked=since.work_s > 0)
        ended = tuple(
            EndedSpan(
                span.cause,
                span.seconds(span.began_s),
                sum(span.energies_j.values()),
                span.net_j,
                weakest(span.energies_j.items()),
            )
            for span in self._ended
        )
        self._ended.clear()
        self._settled_j += piece.energy_j
        return Settlement(
            piece.start_s,
            piece.end_s,
            piece.energy_j,
            meter,
            tuple(Share(*key, part.energy_j, part.net_j, part.seconds) for key, part in shares.items()),
            ended,
        )

    def _learn(
        self, seconds: float, energy_j: float, busy_s: float, meter: MeterClass, *, worked: bool
    ) -> None:
        draw = self._draw.observe(seconds, energy_j, busy_s)
        self._block.add(seconds, busy_s, energy_j)
        if not worked and busy_s <= CALM_CORES * seconds:
            self._calm.add(seconds, busy_s, energy_j)
        block, calm = self._block, self._calm
        if calm.seconds >= _CALM_BLOCK_S:
            rest_w = (calm.energy_j - draw.core.core_w * calm.busy_s) / calm.seconds
            draw = replace(
                draw, idle=draw.idle.learn(calm.seconds, max(rest_w, 0.0), calm.error_w(draw.noise_w))
            )
            self._calm = _Block()
        if block.seconds >= _BLOCK_S:
            idle = draw.idle.bound(block.seconds, block.energy_j / block.seconds, block.error_w(draw.noise_w))
            net_j = block.energy_j - (idle.idle_w + draw.excess_w) * block.seconds
            core = draw.core.learn(block.seconds, block.busy_s, net_j, meter)
            draw = replace(draw, idle=idle, core=core)
            self._block = _Block()
        self._draw = draw
