"""What the user of a board wants of its operating system: host name, account, SSH, network, language, time.

What always holds: no secret stands here in plain text. A password is here as its hash (crypt(5)), the passphrase of a
wireless network as the key that is derived from it (IEEE 802.11-2020, J.4), and neither can be told from the other
end. Every text is of an alphabet that has one reading in a shell, in YAML and in TOML once it is quoted: no control
characters anywhere.

Left to others: how an image is told (:mod:`edgeslm.flash.first_boot`), the flags (:mod:`edgeslm.cli.flash_options`).
"""

from __future__ import annotations

import base64
import binascii
import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from edgeslm.schema.base import FileModel

MAX_SSID_BYTES: Final = 32
"""IEEE 802.11-2020, 9.4.2.2."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]|[\ud800-\udfff]")
_PUBLIC_KEY = re.compile(
    r"(?P<kind>ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)"
    r"|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com)"
    r" (?P<body>[A-Za-z0-9+/]{16,8192}={0,2})(?: (?P<comment>.{1,200}))?"
)
_ROOT: Final = "root"

BoardHostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
"""One label of a name (RFC 1123, 2.1)."""
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
"""Stricter than Linux is: what every image's own tools take."""
PasswordHash = Annotated[
    str, StringConstraints(pattern=r"^\$(5|6|y)\$[./A-Za-z0-9$=]{8,200}$", max_length=256)
]
"""sha256crypt, sha512crypt or yescrypt (crypt(5))."""
WifiKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
"""ISO 3166-1."""
Locale = Annotated[str, StringConstraints(pattern=r"^(C|[a-z]{2,3}_[A-Z]{2})\.UTF-8$", max_length=40)]
KeyboardLayout = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,8}$")]
"""A layout of X11's xkb, such as ``de`` or ``us``."""
TimeZone = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z][A-Za-z0-9_+-]{0,30}(/[A-Za-z][A-Za-z0-9_+-]{0,30}){0,2}$", max_length=64
    ),
]
TimeServer = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]


def _public_key(line: str) -> str:
    found = _PUBLIC_KEY.fullmatch(line)
    if found is None or _CONTROL.search(line):
        raise ValueError("no public key of SSH: one line such as 'ssh-ed25519 AAAA... name'")
    try:
        body = base64.b64decode(found["body"], validate=True)
    except binascii.Error as error:
        raise ValueError("a public key of SSH that was cut or changed") from error
    kind = found["kind"].encode()
    # RFC 4253, 6.6: the key says once more within itself of which kind it is.
    if body[:4] != len(kind).to_bytes(4, "big") or body[4 : 4 + len(kind)] != kind:
        raise ValueError("a public key of SSH that says two kinds")
    return line


PublicKey = Annotated[str, StringConstraints(max_length=9000), AfterValidator(_public_key)]
"""A line of authorized_keys without options (sshd(8))."""


class Account(FileModel):
    """Who may log in.

    Attributes:
        name: of the user; ``root`` where the image allows it.
        password_hash: ``None``: no password lets in.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: UserName
    password_hash: Annotated[PasswordHash | None, Field(repr=False)] = None

    @property
    def is_root(self) -> bool:
        """Whether it is the administrator's own."""
        return self.name == _ROOT


class Wifi(FileModel):
    """A wireless network.

    Attributes:
        ssid: its name, up to 32 bytes of UTF-8.
        psk: 256 bits as hexadecimal digits; ``None``: an open network.
        country: whose rules the radio keeps; without one the radio of a Raspberry Pi stays off.
        hidden: it does not announce itself.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    ssid: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SSID_BYTES)]
    psk: Annotated[WifiKey | None, Field(repr=False)] = None
    country: Country
    hidden: bool = False

    @field_validator("ssid")
    @classmethod
    def _one_reading(cls, ssid: str) -> str:
        if _CONTROL.search(ssid):
            raise ValueError("control characters cannot be part of it here")
        if len(ssid.encode()) > MAX_SSID_BYTES:
            raise ValueError(f"longer than {MAX_SSID_BYTES} bytes")
        return ssid


class StaticAddress(FileModel):
    """The address of the wired interface.

    Attributes:
        address: with the length of its network, such as 192.168.1.20/24.
        gateway: the way out; ``None`` where there is none.
        dns: who knows names.
    """

    address: IPv4Interface
    gateway: IPv4Address | None = None
    dns: Annotated[tuple[IPv4Address | IPv6Address, ...], Field(max_length=4)] = ()

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        network, address = self.address.network, self.address.ip
        if not 1 <= network.prefixlen <= 30:
            raise ValueError("the address needs the length of its network, 1 to 30: such as 192.168.1.20/24")
        if address in (network.network_address, network.broadcast_address):
            raise ValueError(f"{address} is no address of a board in {network}")
        if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
            raise ValueError(f"{address} is no address that a board can have")
        if self.gateway is not None and (self.gateway not in network or self.gateway == address):
            raise ValueError(f"the gateway {self.gateway} is not another board in {network}")
        return self


Wired = Literal["dhcp"] | StaticAddress

OPTIONS: Final[dict[str, str]] = {
    "hostname": "--hostname",
    "account": "--user",
    "ssh_keys": "--ssh-key",
    "ssh": "--ssh/--no-ssh",
    "wifi": "--wifi",
    "wired": "--address",
    "locale": "--locale",
    "keyboard": "--keyboard",
    "timezone": "--timezone",
    "ntp": "--ntp",
}
"""What the command line calls each of them."""


class Customisation(FileModel):
    """Everything that an image can be told for its first boot. What is ``None`` or empty stays as the image has it.

    Attributes:
        hostname: of the board.
        account: who may log in.
        ssh_keys: of the account.
        ssh: whether there is a way in over SSH.
        wifi: the wireless network to join.
        wired: how the wired interface gets its address.
        locale: language, such as de_DE.UTF-8.
        keyboard: layout, such as de.
        timezone: such as Europe/Berlin.
        ntp: time servers.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    hostname: BoardHostName | None = None
    account: Account | None = None
    ssh_keys: Annotated[tuple[PublicKey, ...], Field(max_length=16)] = ()
    ssh: bool | None = None
    wifi: Wifi | None = None
    wired: Wired | None = None
    locale: Locale | None = None
    keyboard: KeyboardLayout | None = None
    timezone: TimeZone | None = None
    ntp: Annotated[tuple[TimeServer, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ssh_keys and self.account is None:
            raise ValueError("a key for SSH needs the user that it lets in")
        if self.ssh_keys and self.ssh is False:
            raise ValueError("a key for SSH is of no use where SSH is off")
        if self.account is not None and self.account.password_hash is None and not self.ssh_keys:
            raise ValueError(f"nobody could log in as {self.account.name}: give a password or a key for SSH")
        if self.account is not None and self.account.is_root and self.ssh and not self.ssh_keys:
            raise ValueError("root does not log in over SSH with a password: give a key")
        return self

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the attributes that say something."""
        return tuple(name for name in OPTIONS if getattr(self, name) not in (None, ()))

    @property
    def is_empty(self) -> bool:
        """Whether all stays as the image has it."""
        return not self.given

    @property
    def wants_ssh(self) -> bool | None:
        """Whether SSH is to be on; a key says so as well. ``None``: as the image has it."""
        return True if self.ssh_keys else self.ssh

    @property
    def password_over_ssh(self) -> bool:
        """Whether a password lets in over SSH: only where there is no key that does."""
        return not self.ssh_keys and self.account is not None and self.account.password_hash is not None
