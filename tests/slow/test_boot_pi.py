"""A prepared card in an emulated Raspberry Pi 3B: it joins and answers with a clock that is months off.

The board has no clock that lasts: it starts with the time of its image. QEMU's network adapter hangs on USB there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import boot_rig
from benchmarks.boot_rig import Board
from edgeslm.sim.qemu import Emulation

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(boot_rig.missing() is not None, reason=f"install it first: {boot_rig.missing()}"),
]


def test_a_raspberry_pi_joins_and_answers_whatever_its_clock_says() -> None:
    with boot_rig.boot_rig() as rig:
        image = rig.prepare("pi-3b", "greenhouse", "--size", "2G")
        # QEMU takes cards whose size is a power of two only.
        size_bytes = 1 << (image.stat().st_size - 1).bit_length()
        subprocess.run(["truncate", "-s", str(size_bytes), image], check=True)
        with (
            rig.listening("greenhouse") as ear,
            contextlib.closing(Board(image, ear, Emulation(machine="raspi3b"))) as board,
        ):
            board.power_on()
            board.answers()
            info = json.loads(ear.since(0, "info")[-1])
            assert info["board"] == "pi-3b"
            board.cut()
            board.power_on()
            board.answers()
