"""All meters of a board as one: the best that can be believed is used, the others check it.

Each read asks every meter once (those that failed less often), judges each, and gives the value of the best sound one:
by class, then instruments before the model, then by error. A meter that gives a new value less than once a second
never speaks for the board itself; it corrects the model, which does. The model is always there, so there always is a
reading.

Demotions and restorations come out with the reading in which they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from edgeslm.errors import MeterError
from edgeslm.power.agreement import (
    AGREE_SIGMAS,
    DISAGREE_SIGMAS,
    Contradiction,
    Difference,
    Relation,
    blame,
    error_of,
    worst_of,
)
from edgeslm.power.correction import OnlineCorrection
from edgeslm.power.health import Limits, MeterHealth
from edgeslm.power.port import Fault, Meter, MeterFacts, Reading

SLOW_PERIOD_S = 1.0
_CLASS_RANK = {"measured": 0, "calibrated": 1, "estimated": 2}


@dataclass(frozen=True)
class Demoted:
    """A meter is not believed any more.

    Attributes:
        fault: what is wrong with it.
        detail: how that showed.
        replaced_by: the meter whose values are used now.
    """

    at_s: float
    meter: str
    fault: Fault
    detail: str
    replaced_by: str


@dataclass(frozen=True)
class Restored:
    """A meter is believed again after a clean run.

    Attributes:
        used: its values are used now.
    """

    at_s: float
    meter: str
    used: bool


MeterEvent = Demoted | Restored


@dataclass(frozen=True)
class BankReading:
    """What the board draws, and how that is known.

    Attributes:
        reading: the best value; a value that is given again has the ``at_s`` it had.
        facts: of the meter that gave it. Its ``counter_j`` may only be compared with that of the same meter.
        readings: what every meter said this time, the model's uncorrected value included; failures as errors.
        events: what changed.
    """

    reading: Reading
    facts: MeterFacts
    readings: tuple[tuple[str, Reading | MeterError], ...]
    events: tuple[MeterEvent, ...]


class _Slot:
    """One instrument with its judgement."""

    def __init__(self, meter: Meter, limits: Limits) -> None:
        self.meter = meter
        self.facts = meter.facts
        self.health = MeterHealth(meter.facts, limits)
        self.relation = Relation(limits)
        self.latest: Reading | None = None
        self.fresh = False

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def slow(self) -> bool:
        return self.facts.period_s > SLOW_PERIOD_S

    @property
    def usable(self) -> bool:
        return self.health.sound and self.latest is not None


class MeterBank:
    """The meters of one board. Not for several threads at once."""

    def __init__(self, meters: Sequence[Meter], model: Meter, limits: Limits) -> None:
        """Take charge of `meters` and `model`, which :meth:`close` closes.

        Args:
            meters: instruments, each with a name of its own.
            model: what is left when all of them fail; must not fail itself.
            limits: what is possible on this board.
        """
        self._slots = [_Slot(meter, limits) for meter in meters]
        self._model = model
        self._limits = limits
        self._correction = OnlineCorrection(model.facts)
        self._differences = {
            (one.name, other.name): Difference(one.facts, other.facts)
            for one, other in combinations(self._slots, 2)
        }

    def read(self, now_s: float) -> BankReading:
        """The best value at monotonic `now_s`, and what changed."""
        expected = self._model.read()
        self._correction.model_says(expected)
        before = {slot.name: slot.health.verdict for slot in self._slots}
        readings: list[tuple[str, Reading | MeterError]] = []
        for slot in self._slots:
            if slot.health.due(now_s):
                readings.append((slot.name, self._ask(slot, now_s, expected.power_w)))
            else:
                slot.latest, slot.fresh = None, False
        self._cross_check(now_s, expected)
        self._learn()
        reading, facts = self._best(expected)
        readings.append((self._model.facts.name, expected))
        events: list[MeterEvent] = []
        for slot in self._slots:
            name, verdict = slot.name, slot.health.verdict
            if verdict.fault is not None and before[name].fault is None:
                events.append(Demoted(now_s, name, verdict.fault, verdict.detail, facts.name))
            elif verdict.fault is None and before[name].fault is not None:
                events.append(Restored(now_s, name, used=facts.name == name))
        return BankReading(reading=reading, facts=facts, readings=tuple(readings), events=tuple(events))

    def close(self) -> None:
        """Close all meters."""
        for slot in self._slots:
            slot.meter.close()
        self._model.close()

    def _ask(self, slot: _Slot, now_s: float, expected_w: float) -> Reading | MeterError:
        outcome: Reading | MeterError
        try:
            outcome = slot.meter.read()
        except MeterError as error:
            outcome = error
        found = slot.health.observe(now_s, outcome, expected_w)
        if isinstance(outcome, MeterError) or found.fault is not None:
            slot.latest, slot.fresh = None, False
        else:
            slot.fresh = slot.latest is None or outcome.at_s > slot.latest.at_s
            slot.latest = outcome
        return outcome

    def _cross_check(self, now_s: float, expected: Reading) -> None:
        live = [(slot, slot.latest) for slot in self._slots if slot.latest is not None]
        for slot, latest in live:
            if slot.fresh:
                slot.relation.add(now_s, expected.power_w, latest.power_w)
        for (one, one_latest), (other, other_latest) in combinations(live, 2):
            slower = one if one.facts.period_s > other.facts.period_s else other
            if slower.fresh:
                self._differences[one.name, other.name].add(now_s, one_latest.power_w, other_latest.power_w)
        slots = [slot for slot, _ in live]
        self._contradict_each_other(now_s, slots)
        for slot in slots:
            if (detail := slot.relation.impossible(self._model.facts)) is not None:
                slot.health.contradicted(now_s, detail)

    def _contradict_each_other(self, now_s: float, live: Sequence[_Slot]) -> None:
        contradictions: list[Contradiction] = []
        agreements: list[tuple[str, str]] = []
        for one, other in combinations(live, 2):
            names = (one.name, other.name)
            difference = self._differences[names]
            sigmas = difference.sigmas()
            if sigmas is None:
                continue
            if one.health.sound and other.health.sound:
                if sigmas > DISAGREE_SIGMAS:
                    contradictions.append(Contradiction(*names, *difference.means_w, sigmas))
                else:
                    agreements.append(names)
            elif sigmas > AGREE_SIGMAS and (one.health.sound or other.health.sound):
                # One that drifted is believed again only once it agrees clearly.
                for slot in (one, other):
                    if slot.health.verdict.fault == "drifting":
                        slot.health.contradicted(now_s, slot.health.verdict.detail)
        if not contradictions:
            return
        named = {name for found in contradictions for name in (found.one, found.other)}
        slots = {slot.name: slot for slot in live if slot.name in named}
        facts = {name: slot.facts for name, slot in slots.items()}
        worst = worst_of(facts, sorted(named), self._limits.idle_w)
        wrong = blame(
            contradictions, agreements, {name: slot.relation for name, slot in slots.items()}, worst
        )
        if wrong is not None:
            found = next(found for found in contradictions if wrong in (found.one, found.other))
            detail = f"{found.one} says {found.one_w:.2f} W, {found.other} {found.other_w:.2f} W"
            slots[wrong].health.contradicted(now_s, detail)

    def _learn(self) -> None:
        """Correct the model by the truest instrument there is."""
        usable = [slot for slot in self._slots if slot.usable and slot.facts.meter_class != "estimated"]
        if not usable:
            return
        teacher = min(usable, key=lambda slot: self._rank(slot.facts))
        if teacher.latest is not None and teacher.fresh:
            self._correction.reference_says(teacher.facts, teacher.latest)

    def _best(self, expected: Reading) -> tuple[Reading, MeterFacts]:
        model = self._correction.facts()
        best = (self._correction.corrected(expected), model)
        rank = (_CLASS_RANK[model.meter_class], 1)
        usable = [slot for slot in self._slots if slot.usable and not slot.slow]
        for slot in sorted(usable, key=lambda slot: self._rank(slot.facts)):
            if slot.latest is not None and (_CLASS_RANK[slot.facts.meter_class], 0) < rank:
                return slot.latest, slot.facts
        return best

    def _rank(self, facts: MeterFacts) -> tuple[int, float, float]:
        typical_w = self._limits.idle_w + self._limits.core_load_w
        return _CLASS_RANK[facts.meter_class], error_of(facts, typical_w), facts.period_s
