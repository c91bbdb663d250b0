"""The part of a mosquitto configuration that joins a broker on a board to one elsewhere. Pure.

The device talks to its own broker, which is always there; that keeps what goes upstream while the way is down, and
passes on what is for this device. Each topic has one direction, so that nothing can go in a circle. The source is
mosquitto.conf(5) of mosquitto 2.0, "Configuring Bridges".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeslm import topics
from edgeslm.errors import ConfigError
from edgeslm.link.client import REPLY_ROOT


@dataclass(frozen=True)
class Bridge:
    """The broker elsewhere, and the device on this side.

    Attributes:
        password: stands in the file, since mosquitto reads it from nowhere else.
        ca_file: switches TLS on.
    """

    host: str
    port: int
    fleet: str
    device: str
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def setting(name: str, value: object, why: str) -> str:
    """One line, explained.

    Raises:
        ConfigError: `value` cannot stand in the file.
    """
    text = str(value)
    if any(char in text for char in "\r\n\x00"):
        raise ConfigError(f"'{text[:80]!r}' holds a line break and cannot stand in mosquitto.conf", key=name)
    return f"# {why}\n{name} {text}\n"


def bridge_lines(bridge: Bridge) -> list[str]:
    """The lines for `bridge`.

    Raises:
        ConfigError: a value cannot stand in the file.
        TopicError: fleet or device is no identifier.
    """
    if not bridge.host or any(char.isspace() for char in bridge.host):
        raise ConfigError(f"'{bridge.host[:80]!r}' is no host name", key="address")
    if bridge.password is not None and bridge.username is None:
        raise ConfigError("a password without a user name", key="remote_password")
    name = f"{bridge.fleet}-{bridge.device}"
    user = topics.device_user(bridge.fleet, bridge.device)
    access = topics.device_access(bridge.fleet, user)
    # What belongs to a home stays on this side. A bridge has no shared subscription: every bridge of a fleet
    # would take each prompt of a pool.
    own = f"{topics.ROOT}/{user}/"
    reads = [topic for topic in access.reads if topic.startswith(own)]
    writes = [topic for topic in access.writes if topic.startswith(own)]
    lines = [
        setting("connection", f"edgeslm-{name}", "The bridge: its name at this broker."),
        setting("address", f"{bridge.host}:{bridge.port}", "The broker elsewhere."),
        setting("bridge_protocol_version", "mqttv50", "Response topics and expiry cross the bridge."),
        setting(
            "remote_clientid", f"edgeslm-bridge-{name}", "Its name there: one session, whoever restarts."
        ),
        setting("cleansession", "false", "Both brokers keep for each other what cannot cross yet."),
        setting("local_cleansession", "false", "Also this one."),
        setting("start_type", "automatic", "Connect, and connect again."),
        setting("restart_timeout", "1 60", "Seconds between attempts: from, to; with a random part."),
        setting("keepalive_interval", 30, "Seconds after which a dead way is noticed."),
        setting("bridge_max_packet_size", 0, "As large as either broker takes."),
        setting("notifications", "false", "No messages of mosquitto's own about the bridge."),
        setting("try_private", "true", "Tell the other broker that this is a bridge: no echo."),
    ]
    if bridge.username is not None:
        lines.append(setting("remote_username", bridge.username, "Who this device is there."))
    if bridge.password is not None:
        lines.append(
            setting("remote_password", bridge.password, "Keep this file readable by mosquitto alone.")
        )
    for key, path, why in (
        ("bridge_cafile", bridge.ca_file, "Who signed the certificate of the broker elsewhere."),
        ("bridge_certfile", bridge.cert_file, "The certificate shown there."),
        ("bridge_keyfile", bridge.key_file, "Its private key."),
    ):
        if path is not None:
            lines.append(setting(key, path, why))
    lines += [setting("topic", f"{topic} in 1", "What is asked of the device.") for topic in reads]
    lines += [setting("topic", f"{topic} out 1", "What the device says.") for topic in writes]
    lines.append(setting("topic", f"{REPLY_ROOT}/# out 1", "Answers, where askers wait for them."))
    return lines
