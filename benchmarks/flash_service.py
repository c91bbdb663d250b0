"""How exposed the agent's service is, as ``systemd-analyze security`` judges the unit that goes onto a board.

The figure is the worst over the kinds of board: one without devices, one that asks the firmware of a Raspberry Pi, and
a PC whose frequency is capped and whose energy counters are read. 0 is nothing exposed, 10 everything.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.agent_rig import MeasurementError
from edgeslm.flash.payload.layout import UNIT_NAME
from edgeslm.flash.unit import options_for, unit_text
from edgeslm.power.boards import choose_board

GROUPS = frozenset({"video"})
KINDS = {
    "plain": ("generic-arm64", False),
    "firmware": ("pi-5", False),
    "frequency and counters": ("host", True),
}
_LEVEL = re.compile(r"Overall exposure level for \S+: (\d+\.\d+)")
_TIMEOUT_S = 60


def exposure(unit: str) -> float:
    """How exposed a unit is, from 0 to 10.

    Raises:
        MeasurementError: systemd-analyze is missing, or does not say.
    """
    program = shutil.which("systemd-analyze")
    if program is None:
        raise MeasurementError("systemd-analyze is not installed: apt install systemd")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / UNIT_NAME
        file.write_text(unit)
        done = subprocess.run(
            [program, "security", "--offline=true", "--no-pager", str(file)],
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
    found = _LEVEL.search(done.stdout)
    if done.returncode or found is None:
        raise MeasurementError(f"systemd-analyze does not say: {(done.stderr or done.stdout)[-300:]}")
    return float(found[1])


def measure(notes: dict[str, str], **options: Any) -> dict[str, Any]:
    """The exposure of the unit, by kind of board, and the worst of it.

    Args:
        notes: takes what there is to say of it.
    """
    del options
    kinds = {
        kind: exposure(unit_text(options_for(choose_board(board), GROUPS, caps_frequency=caps)))
        for kind, (board, caps) in KINDS.items()
    }
    notes["exposure"] = "the worst over the kinds of board; systemd-analyze security --offline=true"
    return {"exposure": max(kinds.values()), "exposure_by_kind": kinds}
