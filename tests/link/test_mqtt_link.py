"""What is the MQTT link's own: outages of the broker, refusals, credentials, limits."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_harness import MqttHarness, Recorder, started, wait_for
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeslm.errors import ConfigError, LinkError
from edgeslm.link import connection, mqtt
from edgeslm.link.broker import EmbeddedBroker, available_kinds, find_mosquitto
from edgeslm.link.broker_config import TlsFiles, mosquitto_config
from edgeslm.link.connection import hops_of
from edgeslm.link.mqtt import MAX_BACKOFF_S, MIN_BACKOFF_S, MqttLink, backoff_s
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
kinds = pytest.mark.parametrize("kind", available_kinds())


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_grows_from_its_least_to_its_longest_with_jitter(failures: int, jitter: float) -> None:
    assert MIN_BACKOFF_S / 2 <= backoff_s(failures, jitter) <= MAX_BACKOFF_S
    assert backoff_s(failures, jitter) <= backoff_s(failures + 1, jitter)
    assert backoff_s(failures, 0.0) <= backoff_s(failures, jitter)


@kinds
def test_waits_for_a_broker_that_starts_later(kind: str) -> None:
    broker = EmbeddedBroker(kind=kind)
    link = MqttLink(broker.client_config(), "early")
    events = Recorder()
    link.start(events, [("early/x", 1)])
    assert wait_for(lambda: bool(events.reasons))
    assert str(broker.port) in events.reasons[0]
    with broker:
        assert wait_for(lambda: bool(events.sessions))
        link.publish(Message("early/x", b"1"))
        assert wait_for(lambda: events.payloads() == [b"1"])
        link.stop()


@kinds
def test_comes_back_after_the_broker_was_killed(kind: str) -> None:
    with EmbeddedBroker(kind=kind) as broker:
        link = MqttLink(broker.client_config(), "phoenix")
        events = started(link, [("phoenix/x", 1)])
        broker.kill()
        assert wait_for(lambda: bool(events.reasons))
        assert link.publish(Message("phoenix/x", b"0")) is None
        broker.start()
        assert wait_for(lambda: len(events.sessions) == 2)
        assert events.sessions[1] is False  # it kept nothing
        link.publish(Message("phoenix/x", b"1"))
        assert wait_for(lambda: events.payloads() == [b"1"])
        link.stop()


@needs_mosquitto
def test_a_session_survives_a_restart_of_a_broker_that_keeps_it(tmp_path: Path) -> None:
    with EmbeddedBroker(kind="mosquitto", persistence_dir=tmp_path) as broker:
        receiver = MqttLink(broker.client_config(), "kept")
        started(receiver, [("kept/#", 1)])
        receiver.stop()
        sender = MqttLink(broker.client_config(), "sender")
        events = started(sender)
        sender.publish(Message("kept/x", b"waits"))
        sender.publish(Message("kept/y", b"retained", retain=True))
        assert wait_for(lambda: len(events.published) == 2)
        sender.stop()
        broker.kill()
        broker.start()
        again = MqttLink(broker.client_config(), "kept")
        got = started(again, [("kept/x", 1)])
        assert got.sessions == [True]
        assert wait_for(lambda: b"waits" in got.payloads())
        again.stop()


def test_every_refused_or_dumb_peer_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.3)
    answers = {
        "not authorized": b"\x20\x03\x00\x87\x00",
        "connection lost": b"\xf0\x00",
        "does not answer": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    }
    for reason, answer in answers.items():
        with socket.create_server(("127.0.0.1", 0)) as server:
            attempts: list[socket.socket] = []
            serving = threading.Thread(target=_answer, args=(server, answer, attempts), daemon=True)
            serving.start()
            link = MqttLink(BrokerConfig(port=server.getsockname()[1]), "refused")
            events = Recorder()
            link.start(events, [("x", 1)])
            assert wait_for(lambda: len(attempts) >= 2), reason  # noqa: B023
            assert wait_for(lambda: bool(events.reasons))  # noqa: B023
            link.stop()
            assert reason in events.reasons[0].lower()
            assert not events.sessions


def _answer(server: socket.socket, answer: bytes, attempts: list[socket.socket]) -> None:
    while len(attempts) < 2:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        attempts.append(peer)
        peer.recv(1000)
        peer.sendall(answer)


def test_stops_at_once_while_it_waits_for_a_broker() -> None:
    link = MqttLink(BrokerConfig(port=1), "waiting")
    events = Recorder()
    link.start(events, [])
    assert wait_for(lambda: bool(events.reasons))
    time.sleep(0.5)
    began_s = time.monotonic()
    link.stop(Message("x", b"bye"))
    assert time.monotonic() - began_s < 1.0


@needs_mosquitto
def test_pings_keep_an_idle_connection_and_a_silent_one_is_noticed(mosquitto: EmbeddedBroker) -> None:
    harness = MqttHarness(mosquitto, "5")
    harness.config = harness.config.model_copy(update={"keepalive_s": 5})
    link = harness.link("idle")
    events = started(link, [("idle/x", 1)])
    time.sleep(9)  # the broker's patience is 7.5 s
    assert events.reasons == []
    harness.hole(link)
    assert wait_for(lambda: bool(events.reasons), 12)
    harness.cut(link)
    harness.restore(link)
    assert wait_for(lambda: len(events.sessions) == 2)
    harness.close()


@needs_mosquitto
def test_refuses_at_once_what_the_broker_would_disconnect_for() -> None:
    with EmbeddedBroker(kind="mosquitto", max_packet_bytes=10_000) as broker:
        link = MqttLink(broker.client_config(), "large")
        events = started(link)
        with pytest.raises(LinkError, match="the broker takes"):
            link.publish(Message("x", b"x" * 10_000))
        link.publish(Message("x", b"x" * 9_000))
        assert wait_for(lambda: len(events.published) == 1)
        assert events.reasons == []
        link.stop()


@needs_mosquitto
def test_reads_the_password_file_for_every_connection(tmp_path: Path) -> None:
    port = EmbeddedBroker(kind="mosquitto").port
    hashes, password = tmp_path / "passwd", tmp_path / "password"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(hashes), "alice", "right"], check=True)
    text = mosquitto_config(port=port, bind_address="127.0.0.1", password_file=hashes, user="root")
    password.write_text("wrong\n")
    with _mosquitto(text, tmp_path, port):
        link = MqttLink(BrokerConfig(port=port, username="alice", password_file=password), "alice")
        events = Recorder()
        link.start(events, [])
        assert wait_for(lambda: bool(events.reasons))
        assert "not authorized" in events.reasons[0].lower()
        password.write_text("right\n")
        assert wait_for(lambda: bool(events.sessions))
        link.stop()


@needs_mosquitto
def test_tls_with_client_certificates_and_an_access_list_by_their_names(tmp_path: Path) -> None:
    port = EmbeddedBroker(kind="mosquitto").port
    ca, server, client = _certificates(tmp_path)
    acl = tmp_path / "acl"
    acl.write_text("pattern readwrite edgeslm/v1/+/%u/#\n")
    acl.chmod(0o600)
    text = mosquitto_config(
        port=port,
        bind_address="127.0.0.1",
        tls=TlsFiles(ca, server.with_suffix(".crt"), server.with_suffix(".key")),
        acl_file=acl,
        user="root",
    )
    identity = {"cert_file": client.with_suffix(".crt"), "key_file": client.with_suffix(".key")}
    with _mosquitto(text, tmp_path, port, tls_ca=ca):
        link = MqttLink(BrokerConfig(port=port, ca_file=ca, **identity), "dev-1")
        events = started(link, [("edgeslm/v1/home/+/x", 1)])
        big = bytes(250_000)
        link.publish(Message("edgeslm/v1/home/dev-1/x", big))
        refused = link.publish(Message("edgeslm/v1/home/dev-2/x", b"not mine"))
        assert wait_for(lambda: refused in events.published)  # a refusal is final
        assert wait_for(lambda: events.payloads() == [big])
        link.stop()
        stranger = MqttLink(BrokerConfig(port=port, ca_file=ca), "stranger")
        told = Recorder()
        stranger.start(told, [])
        assert wait_for(lambda: bool(told.reasons))
        stranger.stop()
        assert not told.sessions
        assert "client certificate?" in told.reasons[0]
        plain = MqttLink(BrokerConfig(port=port), "plain")
        told = Recorder()
        plain.start(told, [])
        assert wait_for(lambda: bool(told.reasons))
        plain.stop()
        assert "before the broker answered" in told.reasons[0]
        assert "TLS port" in told.reasons[0]


@kinds
def test_tls_spoken_to_a_plain_port_is_told_as_a_doubt(kind: str, tmp_path: Path) -> None:
    ca, _, _ = _certificates(tmp_path)
    with EmbeddedBroker(kind=kind) as broker:
        link = MqttLink(broker.client_config().model_copy(update={"ca_file": ca}), "secret")
        events = Recorder()
        link.start(events, [])
        assert wait_for(lambda: bool(events.reasons))
        link.stop()
    assert "without TLS?" in events.reasons[0]


def test_a_password_file_lost_while_it_runs_is_an_outage_and_not_the_end(
    iotcore: EmbeddedBroker, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    harness = MqttHarness(iotcore, "5")
    update = {"username": "alice", "password_file": password}
    harness.config = harness.config.model_copy(update=update)
    link = harness.link("rotating")
    events = started(link)
    password.unlink()
    harness.cut(link)
    harness.restore(link)
    assert wait_for(lambda: str(password) in events.reasons[-1] if events.reasons else False)
    password.write_text("secret")
    assert wait_for(lambda: len(events.sessions) == 2)
    harness.close()


def test_bad_credentials_files_are_found_at_start(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("no certificate")
    missing = tmp_path / "missing"
    for config in (
        BrokerConfig(ca_file=nonsense),
        BrokerConfig(ca_file=missing),
        BrokerConfig(username="alice", password_file=missing),
    ):
        link = MqttLink(config, "bad")
        with pytest.raises(ConfigError) as caught:
            link.start(Recorder(), [])
        assert caught.value.path == str(config.ca_file or config.password_file)
        link.stop()


def test_a_bad_will_is_found_at_start() -> None:
    with pytest.raises(LinkError):
        MqttLink(BrokerConfig(), "bad", Message("", b"")).start(Recorder(), [])


def test_filters_can_change_while_it_runs(iotcore: EmbeddedBroker) -> None:
    harness = MqttHarness(iotcore, "5")
    link = harness.link("changing")
    events = started(link)
    link.subscribe([("changing/a", 1)])
    link.publish(Message("changing/a", b"1"))
    assert wait_for(lambda: events.payloads() == [b"1"])
    link.unsubscribe(["changing/a"])
    link.publish(Message("changing/a", b"2"))
    time.sleep(0.2)
    harness.cut(link)
    assert wait_for(lambda: bool(events.reasons))
    link.subscribe([("changing/b", 1)])
    harness.restore(link)
    assert wait_for(lambda: len(events.sessions) == 2)
    link.publish(Message("changing/b", b"3"))
    assert wait_for(lambda: events.payloads() == [b"1", b"3"])
    harness.close()


@needs_mosquitto
def test_what_is_not_written_is_bounded(mosquitto: EmbeddedBroker) -> None:
    harness = MqttHarness(mosquitto, "5")
    link = harness.link("full")
    started(link)
    harness.hole(link)
    taken = [
        link.publish(Message("full/x", b"1")) for _ in range(connection.MAX_WAITING + connection.WINDOW + 50)
    ]
    assert taken.count(None) == 50
    harness.close()


def test_garbage_from_the_broker_ends_the_connection_and_not_the_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    accepted = b"\x20\x03\x00\x00\x00"
    garbage = (b"\x30\x01\x00", b"\x40\x00", b"\x90\x01\x00", b"\x30" + b"\xff" * 5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = MqttLink(BrokerConfig(port=server.getsockname()[1]), "garbage")
        events = Recorder()
        link.start(events, [])
        for number, answer in enumerate(garbage, 1):
            server.settimeout(15)
            peer, _ = server.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(accepted + answer)
                assert wait_for(lambda: len(events.sessions) == number)  # noqa: B023
                assert wait_for(lambda: len(events.reasons) == number)  # noqa: B023
        link.stop()


# --- helpers -----------------------------------------------------------------------------------------------


class _mosquitto:
    """A real mosquitto with a configuration of the test's own."""

    def __init__(self, text: str, directory: Path, port: int, tls_ca: Path | None = None) -> None:
        self._file = directory / "mosquitto.conf"
        self._file.write_text(text)
        self._port = port
        self._ca = tls_ca
        self._log = (directory / "mosquitto.log").open("wb")

    def __enter__(self) -> None:
        program = find_mosquitto()
        assert program is not None
        self._process = subprocess.Popen([program, "-c", str(self._file)], stderr=self._log)
        assert wait_for(self._accepts), Path(self._log.name).read_text()

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(5)
        self._log.close()


def _certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A certificate authority, and a server and a client (dev-1) that it signed."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    # Python 3.13 refuses an authority that does not say what its key is for (VERIFY_X509_STRICT).
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*new, "-x509", *usage, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    (directory / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name, extra in (("server", ("-extfile", "san")), ("dev-1", ())):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-out", f"{name}.crt"),
            *("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", *extra),
        )
    assert ssl.create_default_context(cafile=str(directory / "ca.crt"))
    return directory / "ca.crt", directory / "server", directory / "dev-1"


@pytest.mark.parametrize(
    ("properties", "hops"),
    [
        ([], 0),
        ([("edgeslm-hops", "3")], 3),
        ([("other", "9"), ("edgeslm-hops", "3"), ("edgeslm-hops", "4")], 3),
        ([("edgeslm-hops", "99999999999999999999")], 255),
        ([("edgeslm-hops", "-1")], 0),
        ([("edgeslm-hops", "\u0663")], 0),
        ([("edgeslm-hops", "")], 0),
        ([("edgeslm-hops", "3 ")], 0),
    ],
)
def test_hops_that_are_no_number_count_for_nothing(properties: list[tuple[str, str]], hops: int) -> None:
    found = Properties(PacketTypes.PUBLISH)
    for pair in properties:
        found.UserProperty = pair
    assert hops_of(found) == hops
    assert hops_of(None) == 0
