"""``self-test`` and ``bench`` over the model that ships, as guests of an agent that is asked meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.operations import self_test
from edgeslm.agent.operations.bench import Bench
from edgeslm.agent.operations.guest import Guest
from edgeslm.agent.operations.ports import Command, Done
from edgeslm.agent.operations.self_test import Lifetime, SelfTest, Subject
from edgeslm.agent.serving import ServedModels
from edgeslm.cli.wiring import open_model
from edgeslm.errors import OperationError
from edgeslm.power.meter import EstimatedMeter
from edgeslm.power.port import MeterFacts, Throttling, Vitals
from edgeslm.schema.board import PowerTable
from edgeslm.schema.operation_results import Check, SelfTestResult, ServedBench
from edgeslm.sim.model import EchoModel

METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
FACTS = MeterFacts("test", "estimated", 1.0, 0.5, 0.0, averages=True, source="made up")
NAME = "home-command"
NOW_S = 1_800_000_000.0


class Progress:
    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.told: list[str] = []

    def tell(self, text: str, share: float | None = None) -> None:
        assert share is None or 0 <= share <= 1
        self.told.append(text)

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModels:
    model = open_model(NAME, threads=1, store_dir=tmp_path_factory.mktemp("store"))
    return ServedModels({NAME: model})


def subject(served: ServedModels, state_dir: Path, **changes: Any) -> Subject:
    whole = Subject(
        guest=Guest(served, METER, lambda: 0),
        state_dir=state_dir,
        meter=lambda: FACTS,
        meter_age_s=lambda: 1.0,
        vitals=lambda: Vitals(0.0, temperature_c=50.0),
        certificate=lambda: Lifetime(NOW_S - 86_400, NOW_S + 86_400),
        unsettled=dict,
        round_trip=lambda _timeout_s: 0.01,
        wall_clock=lambda: NOW_S,
        memory_kib=lambda _row: 1_000_000,
    )
    return replace(whole, **changes)


def checks(step: object) -> dict[str, Check]:
    assert isinstance(step, Done)
    return {check.name: check for check in SelfTestResult.model_validate(dict(step.result)).checks}


# --- self-test ------------------------------------------------------------------------------------------------


def test_a_healthy_device_passes_every_check(served: ServedModels, tmp_path: Path) -> None:
    progress = Progress()
    found = checks(SelfTest(subject(served, tmp_path)).begin(Command("a", "self-test", {}), progress))
    assert {check.state for check in found.values()} == {"ok"}
    assert set(found) == {
        "clock", "disk", "memory", "meter", "board", "certificate", "updates", "broker",
        f"package {NAME}", f"answers {NAME}",
    }  # fmt: skip
    assert found[f"answers {NAME}"].text.startswith("16 of 16 golden prompts")
    assert progress.told[-1] == "10 ok, 0 warn, 0 fail"


def test_a_card_that_gives_other_bytes_is_found(served: ServedModels, tmp_path: Path) -> None:
    installed = served.get(NAME).installed
    copy = tmp_path / "copy"
    shutil.copytree(installed.directory, copy)
    graph = copy / served.get(NAME).graph_file
    graph.chmod(0o644)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)

    class Rotten:
        def __getattr__(self, name: str) -> Any:
            return (
                replace(installed, directory=copy) if name == "installed" else getattr(served.get(NAME), name)
            )

    rotten = ServedModels({NAME: Rotten()})  # type: ignore[dict-item]
    found = checks(SelfTest(subject(rotten, tmp_path)).begin(Command("a", "self-test", {}), Progress()))
    assert found[f"package {NAME}"].state == "fail"
    assert graph.name in found[f"package {NAME}"].text
    (copy / str(installed.manifest.golden)).unlink()
    found = checks(SelfTest(subject(rotten, tmp_path)).begin(Command("a", "self-test", {}), Progress()))
    assert {found[name].state for name in (f"package {NAME}", f"answers {NAME}")} == {"fail"}
    assert found["broker"].state == "ok"


def test_a_check_that_breaks_keeps_no_other_from_being_made(served: ServedModels, tmp_path: Path) -> None:
    def broken(_timeout_s: float) -> float:
        raise OSError(5, "Input/output error")

    found = checks(
        SelfTest(subject(served, tmp_path / "gone", round_trip=broken)).begin(
            Command("a", "self-test", {}), Progress()
        )
    )
    assert (found["broker"].state, found["disk"].state) == ("fail", "fail")
    assert found[f"answers {NAME}"].state == "ok"


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (self_test.judge_clock(17.0), "warn"),
        (self_test.judge_clock(NOW_S), "ok"),
        (self_test.judge_disk(10), "fail"),
        (self_test.judge_disk(100), "warn"),
        (self_test.judge_memory(None), "warn"),
        (self_test.judge_memory(10_000), "fail"),
        (self_test.judge_memory(30_000), "warn"),
        (self_test.judge_meter(None, None), "fail"),
        (self_test.judge_meter(FACTS, None), "fail"),
        (self_test.judge_meter(FACTS, 100.0), "fail"),
        (self_test.judge_meter(FACTS, 59.0), "ok"),
        (self_test.judge_board(Vitals(0.0)), "ok"),
        (self_test.judge_board(Vitals(0.0, temperature_c=85.0)), "warn"),
        (self_test.judge_board(Vitals(0.0, throttling=Throttling(under_voltage=True))), "fail"),
        (self_test.judge_board(Vitals(0.0, throttling=Throttling(throttled=True))), "fail"),
        (self_test.judge_board(Vitals(0.0, throttling=Throttling(frequency_capped=True))), "warn"),
        (self_test.judge_board(Vitals(0.0, throttling=Throttling(throttled_since_boot=True))), "warn"),
        (self_test.judge_certificate(None, NOW_S), "ok"),
        (self_test.judge_certificate(Lifetime(NOW_S - 90, NOW_S - 1), NOW_S), "fail"),
        (self_test.judge_certificate(Lifetime(NOW_S - 90, NOW_S + 10), NOW_S), "warn"),
        (self_test.judge_certificate(Lifetime(NOW_S - 60, NOW_S + 40), NOW_S), "ok"),
        (self_test.judge_certificate(Lifetime(0, 1), 17.0), "warn"),
        (self_test.judge_updates({"m": "does not load"}), "fail"),
        (self_test.judge_round_trip(None), "fail"),
        (self_test.judge_round_trip(5.0), "warn"),
    ],
)
def test_each_judgement_has_a_state_and_a_sentence(check: Check, state: str) -> None:
    assert check.state == state
    assert check.text


# --- bench ----------------------------------------------------------------------------------------------------


def bench(served: ServedModels, left: float | None = None, guest: Guest | None = None) -> Bench:
    return Bench(
        guest or Guest(served, METER, lambda: 0), lambda: Vitals(0.0, temperature_c=50.0), lambda: left
    )


def test_a_bench_tells_speed_and_energy_of_a_served_model(served: ServedModels) -> None:
    step = bench(served).begin(Command("a", "bench", {"rounds": 2}), Progress())
    assert isinstance(step, Done)
    found = ServedBench.model_validate(dict(step.result))
    assert (found.rounds, found.prompts, found.right) == (2, 64, 64)
    assert found.tokens_per_s.least > 0
    assert found.j_per_token is not None
    assert found.net_j_per_token is not None
    assert found.net_j_per_token.median < found.j_per_token.median
    assert (found.meter, found.disturbed, found.temperature_c) == ("estimated", 0, 50.0)


@pytest.mark.parametrize(
    "args", [{"rounds": 0}, {"rounds": 101}, {"model": "none-such"}, {"model": "../x"}, {"x": 1}]
)
def test_a_bench_that_cannot_be_is_refused(served: ServedModels, args: dict[str, Any]) -> None:
    with pytest.raises(OperationError) as error:
        bench(served).begin(Command("a", "bench", args), Progress())
    assert error.value.reason == "refused"


def test_a_bench_leaves_the_rest_of_the_budget_to_users(served: ServedModels) -> None:
    with pytest.raises(OperationError, match="5% of the energy budget is left") as error:
        bench(served, 0.05).begin(Command("a", "bench", {}), Progress())
    assert error.value.reason == "refused"


def test_a_model_without_golden_prompts_is_not_benched_and_only_warns_in_a_self_test(tmp_path: Path) -> None:
    echo = ServedModels({"echo": EchoModel()})
    with pytest.raises(OperationError, match="no golden prompts"):
        bench(echo).begin(Command("a", "bench", {}), Progress())
    found = checks(SelfTest(subject(echo, tmp_path)).begin(Command("a", "self-test", {}), Progress()))
    assert found["answers echo"].state == "warn"
    assert found["package echo"].state == "fail"


class Users:
    """Prompts of users that come now and then: each waits for a while, seen by so many looks."""

    def __init__(self, period: int, looks: int) -> None:
        self.seen = 0
        self.period, self.looks = period, looks

    def waiting(self) -> int:
        self.seen += 1
        return int(self.seen % self.period < self.looks)


def test_prompts_of_users_go_first_and_what_they_disturb_is_asked_again(served: ServedModels) -> None:
    users = Users(90, 3)
    step = bench(served, guest=Guest(served, METER, users.waiting)).begin(
        Command("a", "bench", {"rounds": 1}), Progress()
    )
    assert isinstance(step, Done)
    found = ServedBench.model_validate(dict(step.result))
    assert found.disturbed > 0
    assert (found.prompts, found.right) == (32, 32)


@pytest.fixture
def busy() -> Iterator[Progress]:
    progress = Progress()
    timer = threading.Timer(0.2, progress.cancelled.set)
    timer.start()
    yield progress
    timer.cancel()


def test_a_guest_that_never_gets_a_turn_can_be_stopped(served: ServedModels, busy: Progress) -> None:
    with pytest.raises(OperationError) as error:
        bench(served, guest=Guest(served, METER, lambda: 1)).begin(Command("a", "bench", {}), busy)
    assert error.value.reason == "cancelled"


def test_what_the_end_of_the_process_cut_off_is_not_tried_again(served: ServedModels, tmp_path: Path) -> None:
    for operation in (bench(served), SelfTest(subject(served, tmp_path))):
        with pytest.raises(OperationError) as error:
            operation.resume(Command("a", operation.op, {}), None, Progress())
        assert error.value.reason == "failed"
