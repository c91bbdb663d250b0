"""``self-test``: goes through what a device needs to do its work, and says a sentence about each thing.

It changes nothing. A check that cannot be made counts as failed; whether the device is to be trusted with a check that
warns is left to the reader.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgeslm.agent.operations.arguments import cut_off, read_args
from edgeslm.agent.operations.guest import Guest, golden_cases, is_right
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.clock import clock_is_set
from edgeslm.errors import EdgeslmError, OperationError
from edgeslm.power.port import MeterFacts, Vitals
from edgeslm.procfs import memory_kib
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.operation_results import Check, CheckState, NoArgs, SelfTestResult

_MAX_GOLDEN: Final = 16
_BLOCK_BYTES: Final = 1 << 20
_DISK_MB: Final = (200, 40)
_MEMORY_MB: Final = (48, 16)
"""Below the first figure it warns, below the second it fails."""
_STALE_S: Final = 60.0
_FIRST_VALUE_S: Final = 10.0
_LOOK_S: Final = 0.1
_HOT_C: Final = 80.0
_SLOW_S: Final = 2.0
_ROUND_TRIP_S: Final = 15.0
_LATE_SHARE: Final = 1 / 6
"""A certificate is renewed when a third of its life is left; with less than this something keeps it from that."""
_DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class Lifetime:
    """From when to when a certificate counts, in Unix seconds."""

    not_before_s: float
    not_after_s: float


@dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        guest: asks the served models.
        state_dir: where the agent keeps its files.
        meter: of the meter in use, and `meter_age_s` the seconds since it told something last.
        vitals: of the board.
        certificate: of the device; ``None`` where it has none.
        unsettled: models whose update is in safe mode, by name, with the reason.
        round_trip: seconds that a message takes to the broker and its receipt back, if it comes in so many seconds.
    """

    guest: Guest
    state_dir: Path
    meter: Callable[[], MeterFacts | None]
    meter_age_s: Callable[[], float | None]
    vitals: Callable[[], Vitals]
    certificate: Callable[[], Lifetime | None]
    unsettled: Callable[[], Mapping[str, str]]
    round_trip: Callable[[float], float | None]
    wall_clock: Callable[[], float] = time.time
    memory_kib: Callable[[str], int | None] = memory_kib


class SelfTest:
    """``Operation``."""

    op = "self-test"
    deadline_s = 900.0

    def __init__(self, subject: Subject) -> None:
        """Take what is tested."""
        self._subject = subject

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        read_args(NoArgs, command)
        subject = self._subject
        names = subject.guest.models.names()
        looks: list[tuple[str, Callable[[], Check]]] = [
            ("clock", lambda: judge_clock(subject.wall_clock())),
            ("disk", self._disk),
            ("memory", lambda: judge_memory(subject.memory_kib("MemAvailable"))),
            ("meter", partial(self._meter, progress)),
            ("board", lambda: judge_board(subject.vitals())),
            ("certificate", lambda: judge_certificate(subject.certificate(), subject.wall_clock())),
            ("updates", lambda: judge_updates(subject.unsettled())),
            ("broker", lambda: judge_round_trip(subject.round_trip(_ROUND_TRIP_S))),
        ]
        for name in names:
            looks.append((f"package {name}", partial(self._package, name, progress)))
            looks.append((f"answers {name}", partial(self._answers, name, progress)))
        checks = tuple(self._looked(looks, progress))
        result = SelfTestResult(checks=checks)
        counts = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
        progress.tell(f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail", 1.0)
        return Done(result.model_dump(mode="json"))

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        cut_off(command)

    def _looked(self, looks: list[tuple[str, Callable[[], Check]]], progress: Progress) -> Iterator[Check]:
        for number, (name, look) in enumerate(looks):
            if progress.is_cancelled():
                raise OperationError("it was stopped while it ran", reason="cancelled")
            progress.tell(name, number / len(looks))
            try:
                yield look()
            except OperationError as error:
                if error.reason == "cancelled":
                    raise
                yield _check(name, "fail", str(error))
            except (EdgeslmError, OSError) as error:
                yield _check(name, "fail", str(error))

    def _meter(self, progress: Progress) -> Check:
        subject = self._subject
        until_s = time.monotonic() + _FIRST_VALUE_S
        # An agent that has just started has a meter, and its first value a moment later.
        while subject.meter_age_s() is None and time.monotonic() < until_s and not progress.is_cancelled():
            time.sleep(_LOOK_S)
        return judge_meter(subject.meter(), subject.meter_age_s())

    def _disk(self) -> Check:
        return judge_disk(shutil.disk_usage(self._subject.state_dir).free // 2**20)

    def _package(self, name: str, progress: Progress) -> Check:
        installed = self._subject.guest.models.get(name).installed
        changed = [
            file
            for file, member in installed.manifest.files.items()
            if _sha256(installed.file(file), progress) != member.sha256
        ]
        version = installed.manifest.version
        if changed:
            return _check(
                f"package {name}",
                "fail",
                f"{version}: the card gives other bytes for {', '.join(sorted(changed))}",
            )
        return _check(
            f"package {name}", "ok", f"{version}: {len(installed.manifest.files)} files are as packed"
        )

    def _answers(self, name: str, progress: Progress) -> Check:
        installed: InstalledPackage = self._subject.guest.models.get(name).installed
        cases = golden_cases(installed, _MAX_GOLDEN)
        if not cases:
            return _check(f"answers {name}", "warn", "the package holds no golden prompts")
        right, took_s = 0, 0.0
        for case in cases:
            asked = self._subject.guest.ask(name, case, progress)
            right += is_right(case, asked.answer)
            took_s += asked.seconds
        text = f"{right} of {len(cases)} golden prompts are answered as packed, {took_s / len(cases) * 1e3:.0f} ms each"
        return _check(f"answers {name}", "ok" if right == len(cases) else "fail", text)


# --- judgements -----------------------------------------------------------------------------------------------


def judge_clock(now_s: float) -> Check:
    """The time of the wall clock."""
    told = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds")
    if clock_is_set(now_s):
        return _check("clock", "ok", f"it is {told}")
    return _check("clock", "warn", f"it says {told}, which cannot be: no expiry can be told by it")


def judge_disk(free_mb: int) -> Check:
    """Room on the card, MB of 2^20 bytes."""
    return _check("disk", _below(free_mb, _DISK_MB), f"{free_mb} MB are free")


def judge_memory(available_kib: int | None) -> Check:
    """Memory that a process could have."""
    if available_kib is None:
        return _check("memory", "warn", "the kernel does not say how much is free")
    free_mb = available_kib // 1024
    return _check("memory", _below(free_mb, _MEMORY_MB), f"{free_mb} MB are free")


def judge_meter(facts: MeterFacts | None, age_s: float | None) -> Check:
    """The meter in use, which told something `age_s` seconds ago."""
    if facts is None or age_s is None:
        return _check("meter", "fail", "nothing tells what the board draws")
    if age_s > _STALE_S + facts.period_s:
        return _check("meter", "fail", f"{facts.name} told nothing for {age_s:.0f} s")
    return _check("meter", "ok", f"{facts.name}, {facts.meter_class}")


def judge_board(vitals: Vitals) -> Check:
    """Heat, and what the firmware does about it."""
    flags = vitals.throttling
    told = "temperature unknown" if vitals.temperature_c is None else f"{vitals.temperature_c:.0f} C"
    if flags is not None and (flags.under_voltage or flags.throttled):
        why = "the supply is too weak" if flags.under_voltage else "it is too hot"
        return _check("board", "fail", f"the firmware slows the board down: {why}; {told}")
    if flags is not None and (flags.frequency_capped or flags.soft_temperature_limit):
        return _check("board", "warn", f"the firmware caps the processor's frequency; {told}")
    if flags is not None and (flags.under_voltage_since_boot or flags.throttled_since_boot):
        return _check("board", "warn", f"the firmware slowed the board down since it was started; {told}")
    if vitals.temperature_c is not None and vitals.temperature_c >= _HOT_C:
        return _check("board", "warn", f"{told}: it will soon slow down")
    return _check("board", "ok", told)


def judge_certificate(life: Lifetime | None, now_s: float) -> Check:
    """What is left of the certificate's life."""
    if life is None:
        return _check("certificate", "ok", "this device belongs to no fleet and needs none")
    if not clock_is_set(now_s):
        return _check("certificate", "warn", "without a clock nobody knows how long it counts")
    left_s = life.not_after_s - now_s
    if left_s <= 0:
        return _check("certificate", "fail", f"it is over since {-left_s / _DAY_S:.1f} days")
    if left_s < _LATE_SHARE * (life.not_after_s - life.not_before_s):
        return _check("certificate", "warn", f"it counts {left_s / _DAY_S:.1f} days more and was not renewed")
    return _check("certificate", "ok", f"it counts {left_s / _DAY_S:.1f} days more")


def judge_updates(unsettled: Mapping[str, str]) -> Check:
    """Models that fell back to the factory's."""
    if unsettled:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(unsettled.items()))
        return _check("updates", "fail", f"in safe mode: {told}")
    return _check("updates", "ok", "no model is in safe mode")


def judge_round_trip(took_s: float | None) -> Check:
    """A message to the broker, and its receipt."""
    if took_s is None:
        return _check("broker", "fail", f"it confirmed nothing within {_ROUND_TRIP_S:g} s")
    return _check("broker", "warn" if took_s > _SLOW_S else "ok", f"confirms after {took_s * 1e3:.0f} ms")


def _below(figure: int, limits: tuple[int, int]) -> CheckState:
    warn, fail = limits
    return "fail" if figure < fail else "warn" if figure < warn else "ok"


def _check(name: str, state: CheckState, text: str) -> Check:
    return Check(name=name[:64], state=state, text=text[:500])


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if progress.is_cancelled():
                raise OperationError("it was stopped while it ran", reason="cancelled")
            digest.update(block)
    return digest.hexdigest()
