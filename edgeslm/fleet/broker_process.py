"""The fleet's two mosquittos as child processes: for ``fleet serve --broker``, tests and benchmarks.

What always holds: when :meth:`BrokerProcess.start` returns, all listeners accept connections; the processes die with
the thread that started them (PR_SET_PDEATHSIG, prctl(2)), even when that is killed.

Left to others: their files (:mod:`edgeslm.fleet.broker`), and mosquittos that the system runs.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeslm.children import bound_to_parent
from edgeslm.errors import LinkError
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.broker_config import LOOPBACK
from edgeslm.schema.fleet import FleetBroker

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_LOG_TAIL_CHARS = 800


class BrokerProcess:
    """Broker and door with a fleet's configuration."""

    def __init__(self, config_files: Sequence[Path], settings: FleetBroker, log: Path) -> None:
        """Say what to start; nothing is started yet.

        Args:
            config_files: one for each mosquitto.
            settings: ports and address that stand in them.
            log: file that takes their output; each start begins it anew.
        """
        self._config_files = config_files
        self._settings = settings
        self._log = log
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    @property
    def is_running(self) -> bool:
        """Whether all of them live."""
        return bool(self._processes) and all(one.poll() is None for one in self._processes.values())

    def start(self) -> Self:
        """Start them and wait until they accept connections. Does nothing if they run.

        Raises:
            LinkError: mosquitto is not installed, a port is taken, or one ends at once; the text holds the end of
                the log.
        """
        if self.is_running:
            return self
        for port in self._ports:
            if self._accepts(port):
                raise LinkError(
                    f"port {port} is taken", hint="Stop what listens there, or change the port in fleet.yaml"
                )
        self._log.write_bytes(b"")
        self.revive()
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.is_running:
            if all(self._accepts(port) for port in self._ports):
                return self
            time.sleep(_POLL_S)
        self.stop()
        tail = self._log.read_text("utf-8", "replace")[-_LOG_TAIL_CHARS:].strip()
        raise LinkError(f"mosquitto does not start: {tail or 'no output'}")

    def revive(self) -> list[str]:
        """Start those that do not run, without waiting for them; their names.

        Raises:
            LinkError: mosquitto is not installed.
        """
        program = find_mosquitto()
        if program is None:
            raise LinkError("mosquitto is not installed", hint="Install it: 'apt-get install mosquitto'")
        revived = []
        for config_file in self._config_files:
            process = self._processes.get(config_file)
            if process is not None and process.poll() is None:
                continue
            with self._log.open("ab") as log:
                self._processes[config_file] = subprocess.Popen(
                    bound_to_parent([program, "-c", str(config_file.resolve())]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is ours to handle
                )
            revived.append(config_file.stem)
        return revived

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End them. Idempotent."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.send_signal(how)
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _ports(self) -> tuple[int, ...]:
        return self._settings.port, self._settings.claim_port, self._settings.operator_port

    def _accepts(self, port: int) -> bool:
        try:
            with socket.create_connection((self._settings.bind or LOOPBACK, port), timeout=1):
                return True
        except OSError:
            return False
