"""What one service takes to enrol devices and to roll a release out to them, and how that grows with their number."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

from benchmarks.agent_rig import MeasurementError, rss_mb, say
from benchmarks.fleet_rig import (
    MODEL,
    Service,
    Watch,
    devices_at,
    home,
    peak_mb,
    push,
    scenario,
    wait_for_rest,
)
from benchmarks.report import Found

DEVICES, MANY = 1000, 5000
QUICK_DEVICES, QUICK_MANY = 100, 500
_A_DEVICE_S = 0.4
_LEAST_S = 240.0
_POLL_S = 0.25
_IDLE_CORES = 0.15
_REPORTING_S = 60.0


@dataclass(frozen=True)
class Run:
    """One fleet, from nothing to a finished rollout.

    Attributes:
        enrol_s: until all had joined and were online.
        rollout_s: from the begin of the rollout to its end.
        push_s: how long the command took that began it.
        enrol_cpu_s: processor time of the service, until it had caught up with what devices said; `rollout_cpu_s`
            likewise.
        enrol_took_s: until then; `rollout_took_s` likewise.
        enrol_cores: most that it used in any five seconds; `rollout_cores` likewise.
        peak_mb: most memory of the service, `rest_mb` in the end.
    """

    devices: int
    enrol_s: float
    rollout_s: float
    push_s: float
    enrol_cpu_s: float
    rollout_cpu_s: float
    enrol_took_s: float
    rollout_took_s: float
    enrol_cores: float
    rollout_cores: float
    peak_mb: float
    rest_mb: float

    @property
    def cores(self) -> float:
        """Of the service, from the first request to join to the end of the rollout."""
        return (self.enrol_cpu_s + self.rollout_cpu_s) / (self.enrol_took_s + self.rollout_took_s)

    @property
    def cost_ms(self) -> float:
        """Processor time of the service for each device."""
        return (self.enrol_cpu_s + self.rollout_cpu_s) / self.devices * 1e3


def run(devices: int) -> Run:
    """Enrol so many devices, and bring a release to them.

    Raises:
        MeasurementError: some of them do not get there.
    """
    timeout_s = max(_LEAST_S, devices * _A_DEVICE_S)
    with home(["1.0.0", "1.1.0"]) as place, Service(place) as service:
        service.wait_ready()
        idle_mb = rss_mb(service.pid)
        with devices_at(place, scenario(devices, interval_s=None), join=True) as fleet:
            enrolment = Watch(service.pid)
            deadline_s = time.monotonic() + timeout_s
            while (summary := fleet.summary()).online() < devices:
                enrolment.look()
                if time.monotonic() > deadline_s:
                    raise MeasurementError(f"{summary.online()} of {devices} are online: {summary.reasons}")
                time.sleep(_POLL_S)
            enrol_s = enrolment.took_s
            _catch_up(enrolment, timeout_s)
            say(f"{devices} joined in {enrolment.took_s:.1f} s, {enrolment.cpu_s:.1f} s of processor time")
            rollout = Watch(service.pid)
            number, push_s = push(place, f"{MODEL}@1.1.0")
            view = wait_for_rest(place, number, timeout_s, rollout)
            _catch_up(rollout, timeout_s)
            assert view.finished_at is not None
            rollout_s = (view.finished_at - view.created_at).total_seconds()
            if (view.phase, view.passed) != ("completed", devices):
                raise MeasurementError(f"{view.phase}, {view.passed} passed: {view.reason}")
            say(
                f"rolled out in {rollout_s:.1f} s, {rollout.cpu_s:.1f} s of processor time, from {idle_mb:.0f} MB"
            )
            running = fleet.summary().running
            if running != {f"{MODEL}@1.1.0": devices}:
                raise MeasurementError(f"devices run {running}")
            return Run(
                devices=devices,
                enrol_s=enrol_s,
                rollout_s=rollout_s,
                push_s=push_s,
                enrol_cpu_s=enrolment.cpu_s,
                rollout_cpu_s=rollout.cpu_s,
                enrol_took_s=enrolment.took_s,
                rollout_took_s=rollout.took_s,
                enrol_cores=enrolment.worst_cores,
                rollout_cores=rollout.worst_cores,
                peak_mb=peak_mb(service.pid),
                rest_mb=rss_mb(service.pid),
            )


def measure_reporting(quick: bool) -> Found:
    """Share of a core that the service takes while devices do nothing but report once a minute, and its memory.

    Raises:
        MeasurementError: devices do not come.
    """
    devices = QUICK_DEVICES if quick else DEVICES
    _allow_files(devices)
    with home(["1.0.0"]) as place, Service(place) as service:
        service.wait_ready()
        with devices_at(place, scenario(devices, speed=1.0), join=False) as fleet:
            if not fleet.wait_until(lambda now: now.online() == devices, _LEAST_S):
                raise MeasurementError(f"devices do not come: {fleet.summary().reasons}")
            _catch_up(Watch(service.pid), _LEAST_S)
            watch, until_s = Watch(service.pid), time.monotonic() + _REPORTING_S
            while time.monotonic() < until_s:
                time.sleep(_POLL_S)
                watch.look()
            return {"reporting_cores": watch.cpu_s / watch.took_s, "reporting_mb": rss_mb(service.pid)}


def measure_scale(quick: bool) -> Found:
    """The figures of both sizes.

    Raises:
        MeasurementError: too few files may be open, or devices do not get there.
    """
    some, many = (QUICK_DEVICES, QUICK_MANY) if quick else (DEVICES, MANY)
    _allow_files(many)
    first, second = run(some), run(many)
    return {
        "devices": some,
        "enrol_s": first.enrol_s,
        "rollout_s": first.rollout_s,
        "controller_cores": first.cores,
        "controller_cores_worst": max(first.enrol_cores, first.rollout_cores),
        "controller_mb": first.peak_mb,
        "cost_ms": first.cost_ms,
        "scale_cost_ratio": second.cost_ms / first.cost_ms,
        "scale_detail": {str(one.devices): vars(one) | {"cost_ms": one.cost_ms} for one in (first, second)},
    }


def _catch_up(watch: Watch, timeout_s: float) -> None:
    """Wait until the service has done what was left to do."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        before_s = watch.cpu_s
        time.sleep(1.0)
        watch.look()
        if watch.cpu_s - before_s < _IDLE_CORES:
            return
    raise MeasurementError("the service does not come to rest")


def _allow_files(devices: int) -> None:
    """Each device is a connection here, and one at the broker, which inherits the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * devices + 500
    if most != resource.RLIM_INFINITY and most < wanted:
        raise MeasurementError(f"{most} files may be open, {wanted} are needed: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
