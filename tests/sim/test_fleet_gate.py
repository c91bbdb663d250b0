"""Gates of simulated devices: repeatable, and as right as gates promise to be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from edgeslm.schema.sim_fleet import FleetScenario, Noise, ReleaseEffect, SimulatedGroup
from edgeslm.schema.update import GatePolicy, Verdict
from edgeslm.sim.fleet import make_devices, simulate_gate
from edgeslm.sim.fleet_gate import Effects, Subject, factor, measure

POLICY = GatePolicy()


def subject(number: int = 0, **fields: Any) -> Subject:
    return Subject(
        **{"seed": 1, "number": number, "board": "pi-4b", "noise": Noise(), "meter": "measured"} | fields
    )


def verdict(effect: ReleaseEffect | None = None, number: int = 0, **fields: Any) -> Verdict:
    effects = Effects.of([effect] if effect is not None else [])
    return measure(subject(number, **fields), "m@1.0.0", "m@1.1.0", effects, POLICY)


def outcomes(count: int, **effect: float) -> Counter[str]:
    release = ReleaseEffect(release="m@1.1.0", **effect)
    return Counter(verdict(release, number).outcome for number in range(count))


def test_a_release_that_is_no_different_passes_nearly_always() -> None:
    assert outcomes(300)["pass"] >= 285


@pytest.mark.parametrize(
    "effect", [{"time": 0.1}, {"energy": 0.1}, {"answers": 0.03}, {"memory": 0.2}], ids=str
)
def test_a_release_that_is_worse_by_a_limit_fails_nearly_always(effect: dict[str, float]) -> None:
    assert outcomes(100, **effect)["fail"] >= 95


def test_what_a_device_measures_follows_from_seed_device_and_attempt_alone() -> None:
    effects = Effects()

    def again(**fields: Any) -> Verdict:
        attempt = fields.pop("attempt", 1)
        return measure(subject(**fields), "m@1.0.0", "m@1.1.0", effects, POLICY, attempt=attempt)

    assert again() == again()
    assert len({again().model_dump_json(), again(number=1).model_dump_json(), again(seed=2).model_dump_json(),
                again(attempt=2).model_dump_json()}) == 4  # fmt: skip


def test_verdicts_are_the_same_on_every_machine_and_in_every_version_of_python() -> None:
    ttft = next(
        item for item in verdict(ReleaseEffect(release="m@1.1.0", time=0.1)).criteria if item.name == "ttft"
    )
    assert (ttft.change, ttft.low, ttft.high) == (0.1051, 0.0516, 0.1613)


def test_an_effect_holds_on_the_boards_that_it_names() -> None:
    effects = Effects.of(
        [
            ReleaseEffect(release="m@1.1.0", boards=("pi-3b",), time=0.2),
            ReleaseEffect(release="m@1.1.0", time=0.01),
        ]
    )
    assert [effects.get("m@1.1.0", board).time for board in ("pi-3b", "pi-5")] == [0.2, 0.01]
    assert effects.get("m@1.2.0", "pi-5").time == 0.0


def test_an_effect_differs_a_little_from_device_to_device() -> None:
    effects = Effects.of([ReleaseEffect(release="m@1.1.0", time=0.1)])
    found = [factor(subject(number), "m@1.1.0", effects, "time") for number in range(200)]
    assert 1.095 < sum(found) / 200 < 1.105
    assert len(set(found)) == 200
    assert {factor(subject(number), "m@1.0.0", effects, "time") for number in range(9)} == {1.0}


def test_going_back_from_a_bad_release_passes() -> None:
    effects = Effects.of([ReleaseEffect(release="m@1.1.0", time=0.2, answers=0.1, memory=0.3)])
    assert measure(subject(), "m@1.1.0", "m@1.0.0", effects, POLICY).outcome == "pass"


@pytest.mark.parametrize(
    ("meter", "outcome"), [("estimated", "not_measured"), (None, "not_measured"), ("calibrated", "fail")]
)
def test_energy_is_judged_where_a_meter_measures_it(meter: str | None, outcome: str) -> None:
    found = verdict(ReleaseEffect(release="m@1.1.0", energy=0.2), meter=meter)
    assert next(item.outcome for item in found.criteria if item.name == "energy") == outcome


def test_steady_drift_and_bursts_do_not_turn_a_good_release_into_a_bad_one() -> None:
    noise = Noise(drift=0.005, bursts=0.05)
    assert Counter(verdict(None, number, noise=noise).outcome for number in range(60))["fail"] == 0


def test_the_first_release_under_a_name_is_judged_by_its_answers() -> None:
    assert measure(subject(), None, "m@1.0.0", Effects(), POLICY).outcome == "pass"


def test_a_device_goes_all_the_way_without_a_broker_and_reports_its_verdict() -> None:
    scenario = FleetScenario(
        name="study",
        title="Study",
        groups=(SimulatedGroup(name="d", count=40, models={"m": "1.0.0"}),),
        releases=(ReleaseEffect(release="m@1.2.0", time=0.1), ReleaseEffect(release="m@1.3.0", crashes=0.5)),
    )
    devices = make_devices(scenario, "green")
    for version, state, runs in (("1.1.0", "committed", "1.1.0"), ("1.2.0", "rolled_back", "1.1.0")):
        reports = [simulate_gate(device, "m", version) for device in devices]
        assert [report.models[0].change.state for report in reports].count(state) >= 38
        assert Counter(report.models[0].version for report in reports)[runs] >= 38
        assert all(report.models[0].change.settled and report.models[0].change.verdict for report in reports)
    crashed = [simulate_gate(device, "m", "1.3.0").models[0].change for device in devices]
    assert 10 <= sum(change.fault is not None and change.fault.cause == "crashed" for change in crashed) <= 30
