"""Controllers of rollouts as processes that are there in an instant, to be killed: each ``start`` on stdin forks one.

What takes long, importing, is done before the fork, while there is one thread; all else, from the store to the
connection, is made by each process for itself. Run by :class:`Controllers`, which is the other end.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.agent_rig import MeasurementError
from benchmarks.fleet_rig import Home, clean_environment
from edgeslm.children import bound_to_parent
from edgeslm.fleet.directory import FleetDirectory
from edgeslm.fleet.release_setup import assignment_signer
from edgeslm.fleet.rollout.assigner import Assigner
from edgeslm.fleet.rollout.controller import LEASE, Controller
from edgeslm.fleet.rollout.lease import Lease
from edgeslm.link.mqtt import MqttLink
from edgeslm.power.boards import load_boards

LEASE_S = 1.0
TICK_S = 0.05
_PR_SET_PDEATHSIG = 1


class Controllers:
    """Starts and kills controllers of one fleet; none is left in the end."""

    def __init__(self, place: Home) -> None:
        self.alive: list[int] = []
        with place.log.open("ab") as log:
            self._nursery = subprocess.Popen(
                bound_to_parent(
                    [sys.executable, "-m", "benchmarks.fleet_controller", str(place.directory.root)]
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean_environment(),
                cwd=Path(__file__).parents[1],
            )

    def start(self) -> int:
        """Another one; its process id.

        Raises:
            MeasurementError: there is none.
        """
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(b"start\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        if not line:
            raise MeasurementError("controllers do not start")
        self.alive.append(int(line))
        return self.alive[-1]

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        self.alive.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nursery.kill()  # and so die its children
        self._nursery.communicate()


def _control(root: Path) -> None:
    """Be a controller until the end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    directory = FleetDirectory(root)
    signer = assignment_signer(root / "keys")
    assigner = Assigner(directory.name, directory.releases, [signer], load_boards())
    link = MqttLink(directory.operator_config(), f"edgeslm-rollouts-{secrets.token_hex(6)}")
    lease = Lease(LEASE, length=timedelta(seconds=LEASE_S))
    store = directory.open_store()
    with Controller(store, directory.name, link, assigner, lease=lease, tick_s=TICK_S):
        while True:
            signal.pause()


def main() -> None:
    """Fork a controller for each line."""
    root = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _control(root)
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
