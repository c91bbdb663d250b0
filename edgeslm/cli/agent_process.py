"""An agent as a process of its own: for the demo, and for benchmarks that kill it.

What always holds: the agent gets what it is given here and no ``EDGESLM_AGENT_*`` of whoever starts it; its
journal and models are below `state_dir`, so that the next one started on it goes on where this one was cut
off. On Linux the kernel ends it (SIGTERM) with the *thread* that started it (that is how PR_SET_PDEATHSIG
defines the parent, prctl(2)): start it from a thread that lasts.

Left to others: a broker, and what to ask.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgeslm.children import bound_to_parent
from edgeslm.cli.output import printable
from edgeslm.errors import LinkError

if TYPE_CHECKING:
    from edgeslm.link.client import RequestClient

ONLINE_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 8.0
_ONLINE_POLL_S = 0.5
_LOG_TAIL_CHARS = 2000


class AgentProcess:
    """``edgeslm agent run`` as a child; ended by whatever means, it can be started again on the same state.

    Attributes:
        fleet: that the agent belongs to.
        device: its name on the wire.
        state_dir: its journal and models.
        log: what it writes to stdout and stderr, one start after the other.
    """

    def __init__(
        self,
        port: int,
        state_dir: Path,
        *,
        fleet: str = "demo",
        device: str = "demo",
        flags: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        """Say what to start; nothing is started yet.

        Args:
            port: of the broker, on 127.0.0.1.
            state_dir: made when missing.
            fleet: that the agent belongs to.
            device: its name on the wire.
            flags: more flags of ``agent run``, such as ``--threads 1``.
            log: file to append its output to; ``None`` is ``agent.log`` in `state_dir`.
        """
        self.fleet = fleet
        self.device = device
        self.state_dir = state_dir
        self.log = log if log is not None else state_dir / "agent.log"
        arguments = ["-m", "edgeslm", "agent", "run", "--fleet", fleet, "--device", device]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--state-dir", str(state_dir), *flags]
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process number of the latest start; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, without waiting until it is online. Does nothing if it runs."""
        if self.is_running:
            return self
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGESLM_AGENT_")}
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                bound_to_parent([sys.executable, *self._arguments], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches us alone: the agent has to end before its broker does.
                start_new_session=True,
            )
        return self

    def wait_online(self, client: RequestClient, timeout_s: float = ONLINE_TIMEOUT_S) -> None:
        """Wait until the agent says so itself.

        What `client` heard of an earlier start counts until the broker, a moment after a kill, has published
        the agent's will: after :meth:`kill` wait for ``offline``, or ask with a client that is new by then.

        Raises:
            LinkError: it died, or said nothing in time; its log is shown.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.check()
            try:
                client.wait_online(self.fleet, self.device, _ONLINE_POLL_S)
            except LinkError as error:
                if time.monotonic() > deadline_s:
                    raise LinkError(
                        f"the agent is not online after {timeout_s:g} s{self._shown_log()}"
                    ) from error
            else:
                return

    def check(self) -> None:
        """Make sure that it lives.

        Raises:
            LinkError: it does not; its log is shown.
        """
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            raise LinkError(f"the agent ended with exit code {code}{self._shown_log()}")

    def log_tail(self, max_chars: int = _LOG_TAIL_CHARS) -> str:
        """The end of its log, printable; empty if there is none."""
        try:
            text = self.log.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return printable(text[-max_chars:].strip(), keep="\n")

    def terminate(self) -> None:
        """Let it end (SIGTERM), kill it when it does not, and wait for that. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to save anything (SIGKILL), and wait for that. Idempotent."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _shown_log(self) -> str:
        tail = self.log_tail()
        return f". Its log:\n{tail}" if tail else ", its log is empty"
