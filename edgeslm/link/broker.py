"""An MQTT broker of our own, embedded in the demo and the tests.

What always holds: an embedded broker listens on 127.0.0.1 only, accepts MQTT when
:meth:`EmbeddedBroker.start` returns, and dies with the thread that started it (the kernel kills it,
PR_SET_PDEATHSIG, even when we are killed).

mosquitto is taken where it is installed, else iotcore (rumqttd 0.20 in a wheel). What iotcore 0.4 does
differently, found by trying, see ``tests/link``:

- It has one port for MQTT 5 and another for 3.1.1, and keeps nothing over a restart.
- It closes the connection of a client whose acknowledgements come in another order than the messages (legal:
  [MQTT-4.6.0-2]); mosquitto does not mind.
- **Any client can end it**: one that sends CONNECT, resets the connection before CONNACK and comes back
  under its name makes it panic with a lock held (rumqttd ``server/broker.rs``), and it accepts nobody any
  more. Five attempts do it at most. It is for a demo on one machine, not for a network.
- A client that closes its socket right after DISCONNECT may throw out another one that connects at that
  moment (28 of 6,400 connects; none when it waits for the broker to close, which is what our link does).
- Once **more than 100** QoS 1 messages wait for an absent client, that client's CONNECT is never answered
  again until it comes with a clean start. 100 are delivered.
- Receive Maximum and ``max_inflight_count`` do not hold it back: 50 unacknowledged messages arrive at once
  (mosquitto: 20, then it waits).
- Session Expiry is ignored: sessions last as long as the broker does.
- Retained messages are not sent again when a client subscribes again within its session (mosquitto sends
  them).
- It announces no Maximum Packet Size, and closes the connection for a longer packet without a reason code.

Retained messages, wills, redelivery, message expiry, Response Topic and shared subscriptions work on both.
With a shared subscription mosquitto keeps dealing messages to the session of a member that has died; iotcore
does not. On neither does a second client of the same name set off the first one's will.

Left to others: what stands in its configuration (:mod:`edgeslm.link.broker_config`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edgeslm.children import bound_to_parent
from edgeslm.errors import LinkError
from edgeslm.link.broker_config import LOOPBACK, iotcore_config, mosquitto_config
from edgeslm.schema.config import BrokerConfig

BrokerKind = Literal["mosquitto", "iotcore"]

EMBEDDED_MAX_PACKET_BYTES = 4 * 2**20
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02
_PROBE_TIMEOUT_S = 1.0
_STDERR_TAIL_CHARS = 800

_DISCONNECT = b"\xe0\x00"
_CONNACK = 0x20

_IOTCORE = "import sys; from iotcore.iotcore import IotCoreBroker; IotCoreBroker(config_path=sys.argv[1]).run_forever()"


def find_mosquitto() -> str | None:
    """Where the mosquitto program is; Debian keeps it out of a user's PATH."""
    return shutil.which("mosquitto") or shutil.which(
        "mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
    )


def available_kinds() -> tuple[BrokerKind, ...]:
    """The brokers that can be started here, best first."""
    found: list[BrokerKind] = []
    if find_mosquitto() is not None:
        found.append("mosquitto")
    if importlib.util.find_spec("iotcore") is not None:
        found.append("iotcore")
    return tuple(found)


def _choose(kind: BrokerKind | None) -> BrokerKind:
    available = available_kinds()
    if kind is None and available:
        return available[0]
    if kind is not None and kind in available:
        return kind
    raise LinkError(
        f"{kind} is not installed" if kind else "no MQTT broker is installed",
        hint="Install one: 'apt-get install mosquitto' or 'pip install iotcore'",
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in held:
            sock.bind((LOOPBACK, 0))
        return [int(sock.getsockname()[1]) for sock in held]


def _refuse_used_port(port: int) -> None:
    # Else the broker that has it would answer our probe in place of ours.
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError as error:
            raise LinkError(
                f"no broker can be started on {LOOPBACK}:{port}: {error.strerror}",
                hint="Use the one that runs there, or another port",
            ) from error


def _connect_packet(protocol: Literal["5", "3.1.1"]) -> bytes:
    """CONNECT (section 3.1): clean session, keepalive 10 s, a new client name.

    The name must be new: see the module docstring on clients that come back to iotcore.
    """
    name = f"edgeslm-probe-{uuid.uuid4().hex}".encode()
    version, properties = (b"\x05", b"\x00") if protocol == "5" else (b"\x04", b"")
    rest = b"\x00\x04MQTT" + version + b"\x02\x00\x0a" + properties + len(name).to_bytes(2, "big") + name
    return b"\x10" + bytes([len(rest)]) + rest  # under 128 bytes: one byte of length


def accepts_mqtt(port: int, *, protocol: Literal["5", "3.1.1"] = "5", host: str = LOOPBACK) -> bool:
    """Whether a broker at `host`:`port` answers a CONNECT (with whatever reason code)."""
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S) as sock:
            sock.sendall(_connect_packet(protocol))
            answer = sock.recv(1)
            with contextlib.suppress(OSError):  # one that refused us has closed already
                sock.sendall(_DISCONNECT)
                while sock.recv(4096):  # let the broker close: see the module docstring on leaving iotcore
                    pass
    except OSError:
        return False
    return answer == bytes([_CONNACK])


class EmbeddedBroker:
    """A broker of our own on loopback, as a child process.

    It dies with the *thread* that called :meth:`start` or :meth:`restart` (that is how Linux defines the
    parent of PR_SET_PDEATHSIG): start it from a thread that lasts. Elsewhere it ends at :meth:`stop` only.
    """

    def __init__(
        self,
        *,
        kind: BrokerKind | None = None,
        port: int | None = None,
        persistence_dir: Path | None = None,
        max_packet_bytes: int = EMBEDDED_MAX_PACKET_BYTES,
    ) -> None:
        """Choose the broker; nothing is started yet.

        Args:
            kind: which; ``None`` takes mosquitto where it is installed, else iotcore.
            port: listen there; ``None`` finds a free one.
            persistence_dir: keep sessions and messages there over restarts, written at each change; only
                mosquitto can.
            max_packet_bytes: largest packet, topic and properties included.

        Raises:
            LinkError: that broker, or any, is not installed, or it cannot keep messages.
        """
        self._kind = _choose(kind)
        if persistence_dir is not None and self._kind == "iotcore":
            raise LinkError(
                "iotcore keeps nothing over a restart", hint="Install mosquitto, or do without persistence"
            )
        free = _free_ports(2)
        self._port = port if port is not None else free[0]
        self._port_311 = self._port if self._kind == "mosquitto" else free[1]
        self._persistence_dir = persistence_dir
        self._max_packet_bytes = max_packet_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def kind(self) -> BrokerKind:
        """Which broker it is."""
        return self._kind

    @property
    def port(self) -> int:
        """Port for MQTT 5; it stays over restarts."""
        return self._port

    @property
    def port_311(self) -> int:
        """Port for MQTT 3.1.1: the same one on mosquitto, another on iotcore."""
        return self._port_311

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def client_config(self, protocol: Literal["5", "3.1.1"] = "5") -> BrokerConfig:
        """How a client reaches this broker."""
        port = self._port if protocol == "5" else self._port_311
        return BrokerConfig(host=LOOPBACK, port=port, protocol=protocol)

    def start(self) -> Self:
        """Start it and wait until it accepts MQTT. Does nothing if it runs.

        Raises:
            LinkError: its port is taken, or it ends at once or does not answer in time; the text holds the
                end of its log.
        """
        if self.is_running:
            return self
        for port in {self._port, self._port_311}:
            _refuse_used_port(port)
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="edgeslm-broker-")
        directory = Path(self._directory.name)
        config = directory / ("mosquitto.conf" if self._kind == "mosquitto" else "rumqttd.toml")
        config.write_text(self._config_text())
        log = directory / "log"
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                self._command(config),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=directory,
                start_new_session=True,  # Ctrl-C is ours to handle; the broker must still take our farewells
            )
        self._wait_until_ready(log)
        return self

    def stop(self) -> None:
        """End it and remove its temporary files. Idempotent."""
        self._end(signal.SIGTERM)
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def kill(self) -> None:
        """End it without a chance to save anything (SIGKILL); :meth:`start` brings it back on its port."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it properly and start it again on the same port.

        Raises:
            LinkError: as :meth:`start`.
        """
        self._end(signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _config_text(self) -> str:
        if self._kind == "iotcore":
            return iotcore_config(
                port=self._port, port_311=self._port_311, max_packet_bytes=self._max_packet_bytes
            )
        return mosquitto_config(
            port=self._port,
            bind_address=LOOPBACK,
            allow_anonymous=True,
            persistence_dir=self._persistence_dir,
            save_each_change=True,
            # Dropping root would clear PR_SET_PDEATHSIG, and take away what root alone may write to.
            user="root" if os.geteuid() == 0 else None,
            max_packet_bytes=self._max_packet_bytes,
        )

    def _command(self, config: Path) -> list[str]:
        if self._kind == "iotcore":
            return bound_to_parent([sys.executable, "-P", "-c", _IOTCORE, str(config)])
        program = find_mosquitto()
        if program is None:
            raise LinkError("mosquitto has disappeared")
        return bound_to_parent([program, "-c", str(config)])

    def _wait_until_ready(self, log: Path) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.is_running:
            if accepts_mqtt(self._port) and accepts_mqtt(self._port_311, protocol="3.1.1"):
                return
            time.sleep(_POLL_S)
        tail = log.read_text("utf-8", "replace")[-_STDERR_TAIL_CHARS:].strip()
        self.stop()
        raise LinkError(
            f"{self._kind} does not accept MQTT on {LOOPBACK}:{self._port}: {tail or 'no output'}"
        )

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
