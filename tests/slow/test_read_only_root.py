"""A root that is only read, in an emulated board: sealed by the first start, and nothing of it to mend after a cut."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import boot_rig
from benchmarks.boot_rig import Board, BootRig
from edgeslm.flash.image.ext4_superblock import read_superblock
from edgeslm.flash.image.image import open_image
from edgeslm.sim.qemu import Emulation

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(boot_rig.missing() is not None, reason=f"install it first: {boot_rig.missing()}"),
]
PROFILE = """\
name: sealed
title: A board that is emulated, with a root that is only read
extends: emulated
read_only_root: true
state_device: card
log: {storage: volatile, max_mb: 16}
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[BootRig]:
    with boot_rig.boot_rig() as made:
        (made.profiles / "sealed.yaml").write_text(PROFILE)
        yield made


def test_it_answers_from_a_root_that_is_only_read_and_a_cut_leaves_nothing_to_mend(rig: BootRig) -> None:
    image = rig.prepare("qemu-virt", "attic", "--profile", "sealed")
    loud = Emulation(append="systemd.journald.forward_to_console=1")
    with rig.listening("attic") as ear, contextlib.closing(Board(image, ear, loud)) as attic:
        attic.power_on()
        attic.answers()
        attic.says("the root is read-only from the next start on")
        attic.cut()
        with open_image(image) as card:
            fstab = card.root.read("/etc/fstab", max_bytes=8192).decode()
            assert "LABEL=rootfs / ext4 defaults,noatime,ro 0 1" in fstab
            assert "overlay /var overlay" in fstab
        attic.power_on()
        # It has joined already, and knows so though nothing of the root or of /var was kept.
        attic.answers()
        attic.says("skipped, unmet condition check ConditionPathIsReadWrite=/etc")
        attic.cut()
        with open_image(image) as card:
            root = card.window.part(card.root_partition.start_bytes, card.root_partition.size_bytes)
            assert not read_superblock(root).needs_repair
            card.check()
