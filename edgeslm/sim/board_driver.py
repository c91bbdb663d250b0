"""A simulated board that runs: physics, what acts on it, its meters and its files, under one clock.

What always holds: time moves only by :meth:`SimBoard.advance`, so that a test decides it and a run can be repeated;
:meth:`SimBoard.run` merely advances in step with real time, or faster. What meters show depends on the simulated time
alone, not on how often the board was advanced. ``state.energy_j`` is the truth that meters are judged by.

One board belongs to one thread. Readers of its files may be anywhere.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

from edgeslm.errors import UsageError
from edgeslm.schema.board import Board
from edgeslm.schema.scenario import MeterFault, Scenario, SimulatedMeter
from edgeslm.sim.board import BoardState, Inputs, initial, plant_of, step
from edgeslm.sim.board_meters import Conversion, Texts, garbled, period_s, shown_texts
from edgeslm.sim.board_scenario import faults_at, inputs_at, next_change_s
from edgeslm.sim.board_tree import VCGENCMD, BoardTree, battery_texts

TICK_S = 0.05
"""Real seconds between updates of the files in :meth:`SimBoard.run`."""
_MAX_STEP_S = 1.0


class SimBoard:
    """One simulated board.

    Attributes:
        state: how the board is.
        busy_cores: cores that compute; ``None`` leaves it to the scenario. Holds from the next advance on.
    """

    def __init__(
        self,
        board: Board,
        scenario: Scenario,
        root: Path | None = None,
        *,
        seed: int | None = None,
        max_step_s: float = _MAX_STEP_S,
    ) -> None:
        """Switch the board on.

        Args:
            root: directory for its files; without one it is physics alone.
            seed: takes the place of the scenario's own.
            max_step_s: longest step of the physics; what the firmware does is as coarse as that.

        Raises:
            ConfigError: `root` cannot be written or is in use, or the board heats up without end.
        """
        self.plant = plant_of(board, scenario.battery)
        self.scenario = scenario
        self.seed = scenario.seed if seed is None else seed
        self.busy_cores: float | None = None
        self._max_step_s = max_step_s
        self._cap_mhz: float | None = None
        self._change_s = 0.0
        self.state = initial(self.plant, self._inputs(0.0))
        self._past = deque([self.state])
        self._memory_s = 2.0 * max((period_s(meter) for meter in scenario.meters), default=0.0)
        self._last: dict[str, Texts] = {}
        self._tree = BoardTree(root, board, self.plant, scenario.meters) if root is not None else None
        self._show()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files, which stay as they are."""
        if self._tree is not None:
            self._tree.close()

    @property
    def vcgencmd(self) -> Path:
        """The program that stands in for ``vcgencmd``.

        Raises:
            UsageError: the board has no files.
        """
        if self._tree is None:
            raise UsageError("a simulated board without a directory has no vcgencmd")
        return self._tree.root / VCGENCMD

    def clock(self) -> float:
        """Simulated seconds: the monotonic clock for whoever reads this board."""
        return self.state.time_s

    def advance(self, dt_s: float) -> BoardState:
        """Let `dt_s` seconds pass and show what has become of the board."""
        if self._tree is not None:
            self._cap_mhz = self._tree.cap_mhz()
        end_s = self.state.time_s + dt_s
        while (now_s := self.state.time_s) < end_s:
            if now_s >= self._change_s:
                self._change_s = next_change_s(self.scenario, self.seed, now_s)
            until_s = min(end_s, now_s + self._max_step_s, self._change_s)
            self.state = step(self.plant, self.state, self._inputs(now_s), until_s - now_s)
            self._past.append(self.state)
            while self._past[1].time_s < until_s - self._memory_s:
                self._past.popleft()
        self._show()
        return self.state

    def run(
        self,
        stop: threading.Event,
        *,
        speed: float = 1.0,
        until_s: float = math.inf,
        load: ProcessLoad | None = None,
    ) -> None:
        """Advance with real time until `stop` is set or `until_s` simulated seconds are over.

        Args:
            speed: simulated seconds in a real one.
            load: decides the busy cores.
        """
        began_s, start_s = time.monotonic(), self.state.time_s
        while self.state.time_s < until_s and not stop.wait(TICK_S):
            if load is not None:
                self.busy_cores = load.busy_cores()
            reached_s = min(start_s + speed * (time.monotonic() - began_s), until_s)
            self.advance(reached_s - self.state.time_s)

    def _inputs(self, time_s: float) -> Inputs:
        return inputs_at(
            self.scenario,
            self.seed,
            time_s,
            self.plant.supply_w,
            busy_cores=self.busy_cores,
            cap_mhz=self._cap_mhz,
        )

    # --- what is shown ---

    def _show(self) -> None:
        tree = self._tree
        if tree is None:
            return
        tree.write(self.state)
        faults = faults_at(self.scenario, self.state.time_s)
        for meter in self.scenario.meters:
            conversion = self._conversion(meter, *faults.get(meter.kind, (None, 0.0)))
            texts = shown_texts(meter, self.seed, conversion)
            tree.show(meter.kind, self._faulty(meter.kind, conversion.fault, texts, conversion.number))
            if meter.kind == "pmic":
                tree.hang_vcgencmd(conversion.fault == "stalled")
        if self.plant.battery is not None:
            fault, _ = faults.get("battery", (None, 0.0))
            texts = battery_texts(self.plant.battery, self.state)
            tree.show("battery", self._faulty("battery", fault, texts, math.floor(self.state.time_s)))

    def _faulty(self, instrument: str, fault: MeterFault | None, texts: Texts, number: int) -> Texts | None:
        """What an instrument shows that should show `texts`; ``None`` when it is gone."""
        if fault in {"stuck", "stalled"}:
            return self._last.setdefault(instrument, texts)
        self._last[instrument] = texts
        if fault == "rubbish":
            return garbled(texts, self.seed, number)
        return None if fault == "gone" else texts

    def _conversion(self, meter: SimulatedMeter, fault: MeterFault | None, fault_age_s: float) -> Conversion:
        """The last conversion that `meter` has finished."""
        length_s = period_s(meter)
        number = math.floor(self.state.time_s / length_s + 1e-9)
        end_j, supply_v = self._at(number * length_s)
        start_j, _ = self._at((number - 1) * length_s)
        power_w = (end_j - start_j) / length_s if number else self._past[0].power_w
        return Conversion(number, power_w, supply_v, end_j, fault, fault_age_s)

    def _at(self, time_s: float) -> tuple[float, float]:
        """Joules drawn until a moment of the recent past, and the voltage then."""
        later = self._past[-1]
        time_s = min(time_s, later.time_s)
        for earlier in reversed(self._past):
            if earlier.time_s < time_s:
                passed = (time_s - earlier.time_s) / (later.time_s - earlier.time_s)
                return earlier.energy_j + passed * (later.energy_j - earlier.energy_j), later.supply_v
            later = earlier
        return later.energy_j, later.supply_v


class ProcessLoad:
    """Cores that a process keeps busy, from its processor time: its work is real, the watts are simulated."""

    def __init__(self, pid: int) -> None:
        """Watch that process.

        Raises:
            UsageError: there is none.
        """
        # The clock of a process, as clock_getcpuclockid(3) makes it on Linux.
        self._clock_id = ~pid << 3 | 2
        try:
            self._used_s = time.clock_gettime(self._clock_id)
        except OSError as error:
            raise UsageError(f"no process {pid}") from error
        self._at_s = time.monotonic()

    def busy_cores(self) -> float:
        """Cores that were busy since the last call; 0 once the process has ended."""
        now_s = time.monotonic()
        try:
            used_s = time.clock_gettime(self._clock_id)
        except OSError:
            return 0.0
        cores = (used_s - self._used_s) / max(now_s - self._at_s, 1e-6)
        self._used_s, self._at_s = used_s, now_s
        return cores
