"""Options that say what the operating system of a board is to be told, shared by the commands that prepare images.

What always holds: no password and no passphrase is an argument: each is read from a file, or asked for, and is turned
into its hash or key before anything else sees it.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from edgeslm.errors import UsageError
from edgeslm.files import read_bounded
from edgeslm.schema.customisation import (
    OPTIONS,
    Account,
    Customisation,
    StaticAddress,
    Wifi,
    Wired,
)

R = TypeVar("R")

_DHCP = "dhcp"
_MAX_SECRET_BYTES = 1024
_MAX_KEYS_BYTES = 2**18
_PRIVATE = "PRIVATE KEY-----"
_NAMES = {
    **OPTIONS,
    "name": "--user",
    "password_hash": "--password-file",
    "ssid": "--wifi",
    "psk": "--wifi-password-file",
    "country": "--wifi-country",
    "address": "--address",
    "gateway": "--gateway",
    "dns": "--dns",
}


@dataclass(frozen=True)
class CustomisationOptions:
    """What was said on the command line, unread yet.

    Attributes:
        password_prompt: ask for the password.
        wifi_password_prompt: ask for the passphrase.
        address: ``dhcp``, or an address with the length of its network.
    """

    hostname: str | None
    user: str | None
    password_file: Path | None
    password_prompt: bool
    ssh_key: tuple[Path, ...]
    ssh: bool | None
    wifi: str | None
    wifi_password_file: Path | None
    wifi_password_prompt: bool
    wifi_country: str | None
    wifi_hidden: bool
    address: str | None
    gateway: str | None
    dns: tuple[str, ...]
    locale: str | None
    keyboard: str | None
    timezone: str | None
    ntp: tuple[str, ...]

    def build(
        self, *, device: str | None = None, wifi: Wifi | None = None, ntp: tuple[str, ...] = ()
    ) -> Customisation:
        """What the image is to be told; reads the files and asks what is to be asked.

        Args:
            device: whose name the board takes where none is given.
            wifi: a wireless network, such as a profile's, where none is given.
            ntp: time servers where none are given.

        Raises:
            UsageError: an option makes no sense, alone or with the others, or a file cannot be read.
            FirstBootError: a password or passphrase cannot be one.
            ToolMissingError: what hashes passwords is not installed.
        """
        _paired(self.password_file or self.password_prompt, "--password-file", self.user, "--user")
        _paired(self.ssh_key, "--ssh-key", self.user, "--user")
        for value, flag in (
            (self.wifi_password_file or self.wifi_password_prompt, "--wifi-password-file"),
            (self.wifi_country, "--wifi-country"),
            (self.wifi_hidden, "--wifi-hidden"),
        ):
            _paired(value, flag, self.wifi, "--wifi")
        has_address = self.address not in (None, _DHCP)
        _paired(self.gateway, "--gateway", has_address, "--address with an address")
        _paired(self.dns, "--dns", has_address, "--address with an address")
        try:
            return Customisation(
                hostname=self.hostname or _host_name(device),
                account=self._account(),
                ssh_keys=tuple(key for path in self.ssh_key for key in _read_keys(path)),
                ssh=self.ssh,
                wifi=self._wifi() or wifi,
                wired=self._wired(),
                locale=self.locale,
                keyboard=self.keyboard,
                timezone=self.timezone,
                ntp=self.ntp or ntp,
            )
        except ValidationError as error:
            raise _usage_error(error) from error

    # --- pieces -------------------------------------------------------------------------------------------------

    def _account(self) -> Account | None:
        from edgeslm.flash.first_boot.credentials import hash_password  # noqa: PLC0415

        if self.user is None:
            return None
        password = _secret(
            self.password_file,
            f"Password of {self.user}" if self.password_prompt else None,
            "--password-file",
        )
        return Account(name=self.user, password_hash=None if password is None else hash_password(password))

    def _wifi(self) -> Wifi | None:
        from edgeslm.flash.first_boot.credentials import wifi_key  # noqa: PLC0415

        if self.wifi is None:
            return None
        if self.wifi_country is None:
            raise UsageError(
                "--wifi needs --wifi-country: the radio stays off where nobody says whose rules it keeps",
                hint="Such as --wifi-country DE.",
            )
        # What the name may be is known before it goes into the key.
        network = Wifi(ssid=self.wifi, country=self.wifi_country.upper(), hidden=self.wifi_hidden)
        prompt = f"Passphrase of {self.wifi}" if self.wifi_password_prompt else None
        passphrase = _secret(self.wifi_password_file, prompt, "--wifi-password-file")
        if passphrase is None:
            return network
        return network.model_copy(update={"psk": wifi_key(self.wifi, passphrase)})

    def _wired(self) -> Wired | None:
        if self.address is None:
            return None
        if self.address == _DHCP:
            return "dhcp"
        try:
            address = ipaddress.IPv4Interface(self.address)
            gateway = None if self.gateway is None else ipaddress.IPv4Address(self.gateway)
            dns = tuple(ipaddress.ip_address(server) for server in self.dns)
        except ValueError as error:
            raise UsageError(
                f"--address, --gateway or --dns: {error}",
                hint="Such as --address 192.168.1.20/24 --gateway 192.168.1.1 --dns 192.168.1.1, or --address dhcp.",
            ) from error
        return StaticAddress(address=address, gateway=gateway, dns=dns)


def customisation_options(command: Callable[..., R]) -> Callable[..., R]:
    """Options of what the operating system is told; the command gets them as ``customise``."""
    names = tuple(field.name for field in fields(CustomisationOptions))

    @wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> R:
        options: dict[str, Any] = {name: kwargs.pop(name) for name in names}
        return command(*args, customise=CustomisationOptions(**options), **kwargs)

    wrapped: Callable[..., R] = gathered
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option("--hostname", metavar="NAME", help="Host name; else the device's name from the claim."),
    click.option("--user", metavar="NAME", help="User who may log in, with a password or a key."),
    click.option(
        "--password-file", type=_FILE, help="Holds the user's password, or its hash as in /etc/shadow."
    ),
    click.option("--password-prompt", is_flag=True, help="Ask for the user's password."),
    click.option(
        "--ssh-key",
        type=_FILE,
        multiple=True,
        help="Public key that lets the user in over SSH; switches SSH on, and passwords over SSH off. Repeatable.",
    ),
    click.option("--ssh/--no-ssh", default=None, help="Switch SSH on or off; else as the image has it."),
    click.option("--wifi", metavar="NAME", help="Wireless network to join."),
    click.option("--wifi-password-file", type=_FILE, help="Holds the passphrase of the wireless network."),
    click.option("--wifi-password-prompt", is_flag=True, help="Ask for the passphrase."),
    click.option("--wifi-country", metavar="CC", help="Country whose radio rules hold, such as DE."),
    click.option("--wifi-hidden", is_flag=True, help="The network does not announce itself."),
    click.option(
        "--address",
        metavar="A/LENGTH",
        help="Address of the wired interface, such as 192.168.1.20/24, or dhcp.",
    ),
    click.option("--gateway", metavar="A", help="Gateway of that address."),
    click.option("--dns", metavar="A", multiple=True, help="Name server of that address. Repeatable."),
    click.option("--locale", metavar="NAME", help="Language, such as de_DE.UTF-8."),
    click.option("--keyboard", metavar="LAYOUT", help="Keyboard layout, such as de."),
    click.option("--timezone", metavar="ZONE", help="Time zone, such as Europe/Berlin."),
    click.option("--ntp", metavar="HOST", multiple=True, help="Time server. Repeatable."),
)


def _paired(value: object, flag: str, other: object, needed: str) -> None:
    if value and not other:
        raise UsageError(f"{flag} needs {needed}")


def _host_name(device: str | None) -> str | None:
    from edgeslm.flash.prepare import board_host_name  # noqa: PLC0415

    return None if device is None else board_host_name(device)


def _secret(path: Path | None, prompt: str | None, flag: str) -> str | None:
    if path is not None:
        text = _read(path, _MAX_SECRET_BYTES, flag)
        # One line end belongs to the file; whatever else is in it belongs to the secret.
        return text.removesuffix("\n").removesuffix("\r")
    if prompt is None:
        return None
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for a password on", hint=f"Give {flag}.")
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True))


def _read_keys(path: Path) -> tuple[str, ...]:
    text = _read(path, _MAX_KEYS_BYTES, "--ssh-key")
    if _PRIVATE in text:
        raise UsageError(
            f"{path} holds a private key, which never leaves its machine",
            hint="Give the file that ends with .pub.",
        )
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path} holds no key")
    return keys


def _read(path: Path, max_bytes: int, flag: str) -> str:
    try:
        body = read_bounded(path, max_bytes)
        text = body.decode()
    except OSError as error:
        raise UsageError(f"{flag}: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag}: {path} is no text") from error
    if len(body) > max_bytes:
        raise UsageError(f"{flag}: {path} has more than {max_bytes} bytes")
    return text


def _usage_error(error: ValidationError) -> UsageError:
    first = error.errors(include_url=False, include_input=False)[0]
    # The nearest name that has a flag: places in lists, and branches of a choice, have none.
    flag = next((_NAMES[str(part)] for part in reversed(first["loc"]) if str(part) in _NAMES), None)
    if flag is None and error.title in ("Account", "Wifi", "StaticAddress"):
        flag = {"Account": "--user", "Wifi": "--wifi", "StaticAddress": "--address"}[error.title]
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(f"{flag}: {message}" if flag is not None else message)
