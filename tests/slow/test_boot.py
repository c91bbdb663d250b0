"""A prepared image in an emulated board: it joins, answers, reports, is updated, and comes back from every power cut.

Debian's kernel and system on an emulated Cortex-A72, and everything of ours as a person would start it: a fleet with
mosquitto and TLS, its service, `flash base-image`, `flash prepare`. Needs a mirror of Debian once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import boot_rig
from benchmarks.boot_rig import Board, BootRig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(boot_rig.missing() is not None, reason=f"install it first: {boot_rig.missing()}"),
]


@pytest.fixture(scope="module")
def rig() -> Iterator[BootRig]:
    with boot_rig.boot_rig() as made:
        yield made


@pytest.fixture
def board(rig: BootRig) -> Iterator[Callable[[str], Board]]:
    with contextlib.ExitStack() as stack:

        def make(device: str) -> Board:
            image = rig.prepare("qemu-virt", device)
            ear = stack.enter_context(rig.listening(device))
            return stack.enter_context(contextlib.closing(Board(image, ear)))

        yield make


def test_it_joins_by_itself_survives_a_cut_right_then_answers_reports_and_takes_an_update(
    rig: BootRig, board: Callable[[str], Board]
) -> None:
    porch = board("porch")
    porch.power_on()
    porch.comes_online()
    porch.cut()
    # Whoever saw it come up for the first time may have unplugged it: what the first boot wrote has to be there.
    card = porch.card()
    assert card.size("/etc/machine-id") == 33
    assert card.size("/var/lib/private/edgeslm/agent.db")
    assert card.size("/var/lib/private/edgeslm/identity/current/device.key")
    assert card.empty("/var/lib/private/edgeslm/identity") == []
    (listed,) = [one for one in rig.cli("fleet", "list", "--json") if one["name"] == "porch"]
    assert (listed["standing"], listed["board"]) == ("active", "qemu-virt")

    porch.power_on()
    porch.answers()
    ear = porch.ear
    info = json.loads(ear.since(0, "info")[-1])
    assert (info["board"], [model["name"] for model in info["models"]]) == ("qemu-virt", ["home-command"])
    for channel in ("m/power", "m/system", "m/inference"):
        porch.wait(lambda channel=channel: ear.since(0, channel), f"it reports {channel}")

    release = rig.release_next()
    told = rig.cli("fleet", "push", release, "porch", "--yes", "--json", timeout_s=1200)
    assert (told["phase"], told["passed"]) == ("completed", 1), told
    porch.cut()
    porch.power_on()
    porch.answers()
    reported = json.loads(ear.since(0, "reported")[-1])
    assert [(one["name"], one["version"]) for one in reported["models"]] == [
        ("home-command", boot_rig.NEXT_VERSION)
    ]
    assert porch.power_off(), "it goes off when its power button is pressed"


def test_it_comes_back_from_power_cuts_at_ten_moments(board: Callable[[str], Board]) -> None:
    shed = board("shed")
    for moment in boot_rig.MOMENTS:
        shed.power_on()
        moment.wait(shed)
        shed.cut()
    shed.power_on()
    shed.answers()
    assert len(boot_rig.MOMENTS) == 10
