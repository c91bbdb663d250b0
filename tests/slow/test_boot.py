"""A prepared image in an emulated board: it joins, answers, reports, is updated, and comes back from every power cut.

Debian's kernel and system on an emulated Cortex-A72, and everything of ours as a person would start it: a fleet with
mosquitto and TLS, its service, `flash base-image`, `flash prepare`. Needs a mirror of Debian once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import boot_rig
from benchmarks.boot_rig import DEVICE, Board, BootRig, Card

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(boot_rig.missing() is not None, reason=f"install it first: {boot_rig.missing()}"),
]


@pytest.fixture(scope="module")
def rig() -> Iterator[BootRig]:
    with boot_rig.boot_rig() as made:
        yield made


def test_a_prepared_card_joins_outlasts_ten_power_cuts_answers_reports_and_takes_an_update(
    rig: BootRig,
) -> None:
    image = rig.prepare("qemu-virt", DEVICE)
    with rig.listening(DEVICE) as ear, contextlib.closing(Board(image, ear)) as porch:
        # From its first power-on: the first start itself is cut again and again.
        for moment in boot_rig.MOMENTS:
            porch.power_on()
            moment.wait(porch)
            if moment.name == "it has answered":
                _reports_what_it_is(porch)
                _takes_an_update(rig)
            porch.cut()
            if moment.name == "it says that it is there":
                _has_all_that_it_wrote(porch.card())
                _is_known_to_the_fleet(rig)
        assert len(boot_rig.MOMENTS) == 10

        before = ear.count
        porch.power_on()
        porch.answers()
        told = porch.wait(lambda: ear.since(before, "reported"), "it reports what it runs")
        reported = json.loads(told[-1])
        versions = [(one["name"], one["version"]) for one in reported["models"]]
        assert versions == [("home-command", boot_rig.NEXT_VERSION)]
        assert porch.power_off(), "it goes off when its power button is pressed"


def _reports_what_it_is(porch: Board) -> None:
    info = json.loads(porch.ear.since(0, "info")[-1])
    assert (info["board"], [model["name"] for model in info["models"]]) == ("qemu-virt", ["home-command"])
    for channel in ("m/power", "m/system", "m/inference"):
        porch.wait(lambda channel=channel: porch.ear.since(0, channel), f"it reports {channel}")


def _takes_an_update(rig: BootRig) -> None:
    told = rig.cli("fleet", "push", rig.release_next(), DEVICE, "--yes", "--json", timeout_s=1200)
    assert (told["phase"], told["passed"]) == ("completed", 1), told


def _has_all_that_it_wrote(card: Card) -> None:
    """Whoever saw it come up for the first time may unplug it: what the first start wrote has to be there."""
    assert card.size("/etc/machine-id") == 33
    assert card.size("/var/lib/private/edgeslm/agent.db")
    assert card.size("/var/lib/private/edgeslm/identity/current/device.key")
    assert card.empty("/var/lib/private/edgeslm/identity") == []


def _is_known_to_the_fleet(rig: BootRig) -> None:
    (listed,) = [one for one in rig.cli("fleet", "list", "--json") if one["name"] == DEVICE]
    assert (listed["standing"], listed["board"]) == ("active", "qemu-virt")
