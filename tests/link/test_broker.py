from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from link_harness import started, wait_for

from edgeslm.errors import ConfigError, LinkError
from edgeslm.link import broker as broker_module
from edgeslm.link.broker import EmbeddedBroker, accepts_mqtt, available_kinds, find_mosquitto
from edgeslm.link.broker_config import TlsFiles, mosquitto_config
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
kinds = pytest.mark.parametrize("kind", available_kinds())


@kinds
def test_accepts_both_protocols_when_started_and_none_when_stopped(kind: str) -> None:
    broker = EmbeddedBroker(kind=kind)
    with broker:
        assert broker.kind == kind
        assert broker.is_running
        assert accepts_mqtt(broker.port)
        assert accepts_mqtt(broker.port_311, protocol="3.1.1")
        assert broker.start() is broker
    assert not broker.is_running
    assert not accepts_mqtt(broker.port)
    broker.stop()


@kinds
def test_stays_on_its_port_over_restarts_and_kills(kind: str) -> None:
    with EmbeddedBroker(kind=kind) as broker:
        port = broker.port
        broker.restart()
        assert broker.port == port
        broker.kill()
        assert not broker.is_running
        broker.start()
        assert accepts_mqtt(port)


@kinds
def test_listens_on_loopback_only(kind: str) -> None:
    with EmbeddedBroker(kind=kind) as broker:
        listening = _listening_addresses()
    assert {address for address, port in listening if port == broker.port} == {"0100007F"}


@kinds
def test_dies_with_a_parent_that_was_killed(kind: str, tmp_path: Path) -> None:
    script = (
        "import sys, time; from edgeslm.link.broker import EmbeddedBroker\n"
        f"b = EmbeddedBroker(kind={kind!r}).start(); print(b.port, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    assert accepts_mqtt(port)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not accepts_mqtt(port))


def test_takes_mosquitto_where_it_is_installed_else_iotcore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: "/usr/sbin/mosquitto")
    assert EmbeddedBroker().kind == "mosquitto"
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    assert EmbeddedBroker().kind == "iotcore"
    with pytest.raises(LinkError, match="mosquitto is not installed"):
        EmbeddedBroker(kind="mosquitto")


def test_without_any_broker_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "available_kinds", lambda: ())
    with pytest.raises(LinkError) as caught:
        EmbeddedBroker()
    assert "apt-get install mosquitto" in str(caught.value)
    assert "pip install iotcore" in str(caught.value)


def test_iotcore_refuses_to_promise_persistence(tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        EmbeddedBroker(kind="iotcore", persistence_dir=tmp_path)


@kinds
def test_refuses_a_port_in_use(kind: str, iotcore: EmbeddedBroker) -> None:
    with pytest.raises(LinkError, match="in use"):
        EmbeddedBroker(kind=kind, port=iotcore.port).start()


@needs_mosquitto
def test_a_broker_that_ends_at_once_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "mosquitto_config", lambda **_: "nonsense 1")
    with pytest.raises(LinkError, match="nonsense"):
        EmbeddedBroker(kind="mosquitto", persistence_dir=tmp_path).start()


def test_production_configuration_needs_somebody_who_can_log_in() -> None:
    with pytest.raises(ConfigError):
        mosquitto_config()
    optional = TlsFiles(Path("ca"), Path("crt"), Path("key"), require_certificate=False)
    with pytest.raises(ConfigError):
        mosquitto_config(tls=optional)


def test_production_configuration_cannot_be_injected_into() -> None:
    with pytest.raises(ConfigError):
        mosquitto_config(password_file=Path("/etc/x\nallow_anonymous true"))


def test_every_line_of_the_configuration_is_explained() -> None:
    text = mosquitto_config(
        password_file=Path("/etc/mosquitto/passwd"), persistence_dir=Path("/var/lib/mosquitto")
    )
    lines = [line for line in text.splitlines() if line]
    for before, line in itertools.pairwise(lines):
        assert line.startswith("#") or before.startswith("# "), line


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_mosquitto_takes_the_configuration_and_keeps_messages_for_absent_clients(
    tmp_path: Path, protocol: str
) -> None:
    """As in production, with an absent client: per_listener_settings would lose its messages."""
    with EmbeddedBroker(kind="mosquitto", persistence_dir=tmp_path) as broker:
        config = broker.client_config("5" if protocol == "5" else "3.1.1")
        first = MqttLink(config, "absent")
        started(first, [("x", 1)])
        first.stop()
        sender = MqttLink(config, "sender")
        events = started(sender)
        sender.publish(Message("x", b"1"))
        assert wait_for(lambda: len(events.published) == 1)
        second = MqttLink(config, "absent")
        got = started(second, [("x", 1)])
        assert wait_for(lambda: got.payloads() == [b"1"])
        sender.stop()
        second.stop()


@needs_mosquitto
def test_debians_mosquitto_starts_with_the_drop_in_beside_its_own_settings(tmp_path: Path) -> None:
    port = EmbeddedBroker(kind="mosquitto").port
    drop_ins, data, log = tmp_path / "conf.d", tmp_path / "data", tmp_path / "mosquitto.log"
    drop_ins.mkdir()
    data.mkdir()
    main = tmp_path / "mosquitto.conf"
    main.write_text(
        f"persistence true\npersistence_location {data}/\n\nlog_dest file {log}\n\ninclude_dir {drop_ins}\n"
    )
    drop_in = drop_ins / "edgeslm.conf"
    settings: dict[str, Any] = {"port": port, "bind_address": "127.0.0.1", "allow_anonymous": True}
    settings |= {"persistence_dir": Path("/var/lib/mosquitto"), "user": "root" if os.geteuid() == 0 else None}
    program = find_mosquitto()
    assert program is not None

    drop_in.write_text(mosquitto_config(**settings))
    whole = subprocess.run(
        [program, "-c", str(main)], capture_output=True, text=True, timeout=10, check=False
    )
    assert "Duplicate persistence_location" in whole.stderr  # why the drop-in leaves it out

    drop_in.write_text(mosquitto_config(**settings, drop_in=True))
    process = subprocess.Popen([program, "-c", str(main)], stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: accepts_mqtt(port)), log.read_text()
    finally:
        process.terminate()
        process.wait(5)
    assert (data / "mosquitto.db").exists()


@pytest.mark.parametrize("persistence_dir", [None, Path("/var/lib/mosquitto")])
def test_the_drop_in_lacks_exactly_what_debians_file_sets(persistence_dir: Path | None) -> None:
    def names(text: str) -> set[str]:
        return {line.split()[0] for line in text.splitlines() if line and not line.startswith("#")}

    whole = mosquitto_config(allow_anonymous=True, persistence_dir=Path("/var/lib/mosquitto"))
    part = mosquitto_config(allow_anonymous=True, persistence_dir=persistence_dir, drop_in=True)
    assert names(whole) - names(part) == {"persistence", "persistence_location", "log_dest"}
    assert names(part) < names(whole)


def _listening_addresses() -> list[tuple[str, int]]:
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A":
            address, port = local.split(":")
            found.append((address, int(port, 16)))
    return found
