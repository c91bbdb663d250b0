"""Whether a device can run a release, and how it can try it."""

from __future__ import annotations

import pytest

from edgeslm.agent.update.ports import DeviceFacts
from edgeslm.agent.update.preflight import allowance_mb, check_device, check_room, choose_mode
from edgeslm.errors import UpdateError
from edgeslm.schema.release import ReleaseRequirements

FACTS = DeviceFacts("dev1", "0.3.0", frozenset({"neon", "dotprod"}), ("litert",), 512, 3)
NEEDS = ReleaseRequirements(ram_mb=64, cpu_features=("dotprod",), agent="0.2.0", runtimes=("litert",))


def cause_of(call, *arguments) -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        call(*arguments)
    return caught.value.cause, str(caught.value)


def test_a_release_that_fits_is_let_through() -> None:
    check_device(NEEDS, FACTS)
    check_room(10 * 2**20, 100 * 2**20)


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ({"agent": "1.0.0"}, "needs edgeslm 1.0.0, not 0.3.0"),
        ({"cpu_features": ("dotprod", "i8mm")}, "a processor with i8mm"),
        ({"runtimes": ("tflite-runtime",)}, "the runtime tflite-runtime, there is litert"),
        ({"ram_mb": 1024}, "needs 1024 MB of memory, the board has 512 MB"),
    ],
)
def test_what_the_device_lacks_is_named(lacks, told) -> None:
    cause, message = cause_of(check_device, NEEDS.model_copy(update=lacks), FACTS)
    assert cause == "incompatible"
    assert told in message


def test_a_disk_without_room_for_file_package_and_weights_is_refused_in_figures() -> None:
    cause, message = cause_of(check_room, 100 * 2**20, 300 * 2**20)
    assert cause == "no_room"
    assert "332 MiB free, 300 MiB are" in message


@pytest.mark.parametrize(
    ("available_mb", "old_mb", "mode"),
    [
        (None, 64, "beside"),
        (225, 64, "beside"),
        (223, 64, "swap"),
        (128, None, "beside"),
        (100, None, "swap"),
        (32, 64, "swap"),
    ],
)
def test_two_processes_beside_the_agent_where_memory_allows_and_its_place_otherwise(
    available_mb, old_mb, mode
) -> None:
    assert choose_mode(64, old_mb, available_mb, 32) == mode


def test_too_little_memory_for_either_way_is_told_in_figures() -> None:
    cause, message = cause_of(choose_mode, 500, 64, 200, 32)
    assert cause == "no_memory"
    assert "needs 500 MB of memory, 200 MB can be had and 64 MB come back" in message


def test_a_trial_may_take_half_as_much_again_as_it_says() -> None:
    assert allowance_mb(200, 3) == 300 + 4 * 8
