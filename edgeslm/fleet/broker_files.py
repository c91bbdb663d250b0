"""What stands in the files of the fleet's mosquittos. Pure.

There are two. The **broker** is for those who have a certificate: devices and the operator. The **door** is for those
who have yet to get one: claims, which log in by password. It is a process of its own, so that nobody without a
certificate comes near the devices' broker, and forwards requests and replies of first contact as a bridge, nothing
else.

What always holds:

- A device's user name *and* client id are its certificate's name, and a claim's client id is its user name: nobody
  can take another's session. The operator, who has many sessions, has a listener that lets nobody else in: it knows
  the operator's own certificate and no authority.
- The access lists are the same however many devices and claims there are: they are patterns over those names. Only
  grants to single devices, or to those with a tag, add lines.
- What :mod:`edgeslm.topics` says that a device reads and writes is all that it may, but for what the operator grants,
  and for answers, which go to topics of the askers' own: nobody reads those without being told their name, and no
  device may read any.
- Nothing here makes the broker read its files again. On SIGHUP mosquitto 2.0.21 ends the sessions of absent clients
  with certificates a second time, and from then on throws them out a second after each connection. The door has no
  such sessions, so it may; and revoked certificates are looked up at every handshake (``capath``).

Sources: mosquitto.conf(5) of mosquitto 2.0; the form of a password file from mosquitto_passwd(1); the lookup of
revocation lists from X509_LOOKUP_hash_dir(3).
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm import topics
from edgeslm.link.broker_config import LOOPBACK, TlsFiles, mosquitto_config
from edgeslm.link.client import REPLY_ROOT
from edgeslm.schema.fleet import FleetBroker

CONFIG, ACCESS, PID, DATA = "mosquitto.conf", "acl", "mosquitto.pid", "data"
DOOR_CONFIG, DOOR_ACCESS, DOOR_PID, PASSWORDS = "door.conf", "door-acl", "door.pid", "passwd"
AUTHORITY, CERTIFICATE, KEY, REVOKED = "ca.crt", "server.crt", "server.key", "revoked"
DOOR_CERTIFICATE, DOOR_KEY, OPERATOR_CERTIFICATE = "door.crt", "door.key", "operator.crt"
OPERATOR, DOOR, HOME_ASSISTANT = "operator", "door", "home_assistant"
"""User names of those three, from their certificates; no device or claim has one without a slash."""
_PASSWORD_ROUNDS = 101
"""What mosquitto_passwd takes; passwords here are 80 random bits, which no stretching has to help."""


def hash_password(password: str) -> str:
    """`password` as mosquitto 2.0 keeps it: PBKDF2-HMAC-SHA512, ``$7$rounds$salt$digest``."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PASSWORD_ROUNDS, 64)
    return f"$7${_PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def password_text(fleet: str, claims: Iterable[tuple[str, str]]) -> str:
    """The door's password file with each (claim, hash)."""
    return "".join(f"{topics.claim_user(fleet, claim)}:{password_hash}\n" for claim, password_hash in claims)


@dataclass(frozen=True)
class Granted:
    """More access than follows from who somebody is.

    Attributes:
        users: whose; ``None`` is every device.
    """

    users: tuple[str, ...] | None
    access: topics.Access


def access_text(fleet: str, grants: Sequence[Granted] = ()) -> str:
    """The broker's access list, with the grants of the fleet's settings."""
    operator, door, device = (
        topics.operator_access(fleet),
        topics.door_access(fleet),
        topics.device_access(fleet),
    )
    to_all = [one.access for one in grants if one.users is None]
    # What the patterns below would give to those who are no devices as well; denials come first.
    denied = [
        f"topic deny {name}"
        for name in dict.fromkeys(
            [
                topics.pool_filter(fleet),
                f"{REPLY_ROOT}/#",
                *(name for access in to_all for name in (*access.reads, *access.writes)),
            ]
        )
    ]
    return "\n".join(
        [
            "# Written by edgeslm.",
            "",
            f"user {OPERATOR}",
            *_rights("topic", operator),
            f"topic readwrite {REPLY_ROOT}/#",
            "",
            f"user {DOOR}",
            *denied,
            f"topic deny {topics.home_assistant_filter()}",
            *_rights("topic", door),
            "",
            f"user {HOME_ASSISTANT}",
            *denied,
            *_rights("topic", topics.home_assistant_access(fleet)),
            "",
            *_granted(grants),
            "# Every device, by the name in its certificate.",
            *_rights("pattern", device),
            f"pattern write {REPLY_ROOT}/#",
            *(line for access in to_all for line in _rights("pattern", access)),
            "",
        ]
    )


def _granted(grants: Sequence[Granted]) -> list[str]:
    """A part for each user with grants of its own; the patterns hold for it as well."""
    lines: dict[str, list[str]] = {}
    for one in grants:
        for user in one.users or ():
            lines.setdefault(user, []).extend(_rights("topic", one.access))
    return [line for user, rights in sorted(lines.items()) for line in (f"user {user}", *rights, "")]


def door_access_text() -> str:
    """The door's access list."""
    rights = _rights("pattern", topics.claim_access())
    return "\n".join(["# Written by edgeslm.", "", "# Every claim, by its user name.", *rights, ""])


def _rights(kind: str, access: topics.Access) -> Sequence[str]:
    return [
        *(f"{kind} read {name}" for name in access.reads),
        *(f"{kind} write {name}" for name in access.writes),
    ]


def config_text(directory: Path, broker: FleetBroker, *, first_list: str) -> str:
    """The broker's configuration for the files in `directory`, an absolute path.

    Args:
        directory: where the other files are.
        broker: ports and address.
        first_list: name of the first revocation list, in ``revoked``: that there is one turns checking on.
    """
    text = mosquitto_config(
        port=broker.port,
        bind_address=broker.bind,
        tls=TlsFiles(directory / AUTHORITY, directory / CERTIFICATE, directory / KEY),
        acl_file=directory / ACCESS,
        persistence_dir=directory / DATA,
        user=_user(),
    )
    return (
        text
        + f"""
# Certificates that are refused although they are signed: the first list, and where newer ones are looked for.
crlfile {directory / REVOKED / first_list}
capath {directory / REVOKED}

# A device's client id is its certificate's name: nobody takes another's session.
use_username_as_clientid true

# The operator: this listener takes the certificate in its cafile, and no other.
{_listener(broker.operator_port, broker.bind, directory, OPERATOR_CERTIFICATE)}
require_certificate true
use_identity_as_username true

# Whom to ask whether this broker runs. Do not send it SIGHUP: see docs/fleet.md.
pid_file {directory / PID}
"""
    )


def door_config_text(directory: Path, fleet: str, broker: FleetBroker) -> str:
    """The door's configuration for the files in `directory`, an absolute path."""
    access = topics.door_access(fleet)
    forwarded = [f"topic {name} out 1" for name in access.writes] + [
        f"topic {name} in 1" for name in access.reads
    ]
    user = _user()
    return f"""# Written by edgeslm for mosquitto 2.0. See mosquitto.conf(5).
{f"user {user}" if user else "# Runs as whoever starts it."}
allow_anonymous false
password_file {directory / PASSWORDS}
acl_file {directory / DOOR_ACCESS}
set_tcp_nodelay true
max_packet_size 100000
max_queued_messages 100
persistence false
log_dest stderr
log_type error
log_type warning
log_type notice
pid_file {directory / DOOR_PID}

# To the broker: first contact, and nothing else.
connection {DOOR}
address {broker.bind or LOOPBACK}:{broker.port}
bridge_protocol_version mqttv50
bridge_cafile {directory / AUTHORITY}
bridge_certfile {directory / DOOR_CERTIFICATE}
bridge_keyfile {directory / DOOR_KEY}
cleansession true
restart_timeout 1 10
try_private false
notifications false
{chr(10).join(forwarded)}

# Claims: they know the door by its certificate, and show a password.
{_listener(broker.claim_port, broker.bind, directory, AUTHORITY)}
use_username_as_clientid true
"""


def broker_hosts(broker: FleetBroker) -> list[str]:
    """The names and addresses by which the broker is reached, by devices first; the door uses the last."""
    hosts = [broker.host, broker.bind, "localhost", LOOPBACK]
    return list(dict.fromkeys(host for host in hosts if host is not None))


def _user() -> str | None:
    # Started as root mosquitto becomes a user who may not read these files.
    return "root" if os.geteuid() == 0 else None


def _listener(port: int, bind: str | None, directory: Path, trusted: str) -> str:
    return f"""listener {f"{port} {bind}" if bind else port}
cafile {directory / trusted}
certfile {directory / CERTIFICATE}
keyfile {directory / KEY}
tls_version tlsv1.2"""
