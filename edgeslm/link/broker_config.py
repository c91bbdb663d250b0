"""The configuration of an MQTT broker: for production, and for the embedded one.

What always holds: every function here is pure; what :func:`mosquitto_config` writes for production and what
the tests start differ in values only. The source is mosquitto.conf(5) of mosquitto 2.0.

Left to others: where the configuration is written, certificates, and passwords (``mosquitto_passwd``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import ConfigError
from edgeslm.link.broker_bridge import Bridge, bridge_lines, setting
from edgeslm.schema.message import MAX_BODY_BYTES

LOOPBACK = "127.0.0.1"
MAX_PACKET_BYTES = 300_000
"""Production limit: the largest body that an agent looks at, with room for topic and properties."""
MAX_INFLIGHT = 20

assert MAX_PACKET_BYTES > MAX_BODY_BYTES  # noqa: S101 - a fact about two constants, not about input


@dataclass(frozen=True)
class TlsFiles:
    """TLS of a listener.

    Attributes:
        ca_file: who signs client certificates.
        cert_file: the broker's certificate chain.
        key_file: its private key.
        require_certificate: only clients with a certificate of `ca_file` get in; its common name becomes
            the user name that the access list sees.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    require_certificate: bool = True


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _access(
    tls: TlsFiles | None, password_file: Path | None, acl_file: Path | None, anonymous: bool
) -> list[str]:
    """The listener's lines about who gets in."""
    lines = [setting("allow_anonymous", _flag(anonymous), "Whether clients without credentials get in.")]
    if tls is not None:
        lines += [
            setting("cafile", tls.ca_file, "Who signs client certificates."),
            setting("certfile", tls.cert_file, "The broker's own certificate, with its chain."),
            setting("keyfile", tls.key_file, "Its private key: readable by the broker's user only."),
            setting("tls_version", "tlsv1.2", "Nothing older than TLS 1.2."),
            setting(
                "require_certificate",
                _flag(tls.require_certificate),
                "Whether each client must show a certificate.",
            ),
        ]
        if tls.require_certificate:
            lines.append(
                setting(
                    "use_identity_as_username",
                    "true",
                    "A certificate's common name is its user name: no passwords, and %u in the access list.",
                )
            )
    if password_file is not None:
        lines.append(setting("password_file", password_file, "Made with mosquitto_passwd; hashes only."))
    if acl_file is not None:
        lines.append(
            setting("acl_file", acl_file, "Who may do what, e.g. 'pattern readwrite edgeslm/v1/+/%u/#'.")
        )
    return lines


def mosquitto_config(
    *,
    port: int = 1883,
    bind_address: str | None = None,
    tls: TlsFiles | None = None,
    password_file: Path | None = None,
    acl_file: Path | None = None,
    allow_anonymous: bool = False,
    persistence_dir: Path | None = None,
    save_each_change: bool = False,
    user: str | None = None,
    max_packet_bytes: int = MAX_PACKET_BYTES,
    max_queued_messages: int = 10_000,
    drop_in: bool = False,
    bridge: Bridge | None = None,
) -> str:
    """A ``mosquitto.conf`` for mosquitto 2.0 that fits edgeslm, each line explained.

    It is the whole file, or with `drop_in` a part of Debian's: mosquitto refuses to be told twice where to
    persist, and Debian's main file tells it already.

    Args:
        port: of the one listener.
        bind_address: address to listen on; ``None`` is all.
        tls: certificates; ``None`` is plain TCP.
        password_file: who may log in by password.
        acl_file: access list.
        allow_anonymous: let clients in without credentials.
        persistence_dir: where sessions, queued and retained messages survive a restart; ``None`` is nowhere.
            With `drop_in` the main file says where.
        save_each_change: write them on every change instead of once a minute: for tests, costly otherwise.
        user: whom a broker started as root becomes; ``None`` is mosquitto's default.
        max_packet_bytes: largest packet, topic and properties included.
        max_queued_messages: QoS 1 messages kept for one absent or slow client.
        drop_in: leave out what Debian's /etc/mosquitto/mosquitto.conf sets (persistence,
            persistence_location, log_dest), so that its conf.d can hold this file.
        bridge: the broker that this one passes messages to and from; ``None`` is none.

    Raises:
        ConfigError: nobody could log in, or a value cannot stand in the file.
    """
    by_certificate = tls is not None and tls.require_certificate
    if not (allow_anonymous or by_certificate or password_file is not None):
        raise ConfigError(
            "nobody could log in to this broker",
            hint="Give a password file, TLS files that require certificates, or allow anonymous clients",
        )
    lines = ["# Written by edgeslm for mosquitto 2.0. See mosquitto.conf(5).\n"]
    if user is not None:
        lines.append(setting("user", user, "Whom the broker becomes when started as root."))
    lines += [
        # per_listener_settings stays out: with it mosquitto 2.0.21 drops what comes for an absent client.
        setting("set_tcp_nodelay", "true", "Without it a QoS 1 round trip of 0.35 ms takes 88 ms (Nagle)."),
        setting(
            "max_packet_size",
            max_packet_bytes,
            "Bytes of the largest packet. MQTT 5 clients are told; others are disconnected for a longer one.",
        ),
        setting("max_inflight_messages", MAX_INFLIGHT, "Unacknowledged messages on the way to one client."),
        setting(
            "max_queued_messages",
            max_queued_messages,
            "QoS 1 messages kept for a client that is away or slow; what comes after them is dropped.",
        ),
        setting("queue_qos0_messages", "false", "Deltas of a stream are worth nothing later."),
        setting(
            "persistent_client_expiration", "30d", "Forget sessions of MQTT 3.1.1 clients gone this long."
        ),
    ]
    if not drop_in:
        keeps = _flag(persistence_dir is not None)
        lines.append(setting("persistence", keeps, "Whether a restart keeps sessions and messages."))
        if persistence_dir is not None:
            lines.append(
                setting("persistence_location", f"{persistence_dir}/", "Where; owned by the broker's user.")
            )
    if drop_in or persistence_dir is not None:
        lines += [
            setting(
                "autosave_on_changes",
                _flag(save_each_change),
                "Whether the next line counts changes or seconds.",
            ),
            setting(
                "autosave_interval",
                1 if save_each_change else 60,
                "What a power cut may lose; the default is 1800.",
            ),
        ]
    if not drop_in:
        lines.append(setting("log_dest", "stderr", "The journal, under systemd."))
    lines += [
        setting("log_type", "error", "What went wrong,"),
        setting("log_type", "warning", "what may go wrong,"),
        setting("log_type", "notice", "and who came and went."),
        setting(
            "listener", f"{port} {bind_address}" if bind_address else port, "Port, and address if not all."
        ),
        *_access(tls, password_file, acl_file, allow_anonymous),
    ]
    if bridge is not None:
        lines += bridge_lines(bridge)
    return "\n".join(lines)


def iotcore_config(*, port: int, port_311: int, max_packet_bytes: int) -> str:
    """The TOML for rumqttd 0.20 as iotcore takes it: one listener for each protocol version, on loopback."""

    def listener(table: str, number: int) -> str:
        return f"""
[{table}]
name = "{table.replace(".", "-")}"
listen = "{LOOPBACK}:{number}"
next_connection_delay_ms = 1
    [{table}.connections]
    connection_timeout_ms = 60000
    max_payload_size = {max_packet_bytes}
    max_inflight_count = {MAX_INFLIGHT}
"""

    # A segment is what the broker keeps of one filter's messages, ten times the first figure in bytes.
    return f"""id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = {max(104_857_600 // 10, max_packet_bytes)}
max_segment_count = 10
{listener("v5.1", port)}{listener("v4.1", port_311)}"""
