"""A fleet's directory on the operator's machine.

::

    <dir>/fleet.yaml            settings
    <dir>/fleet.db              the store, unless the settings name another
    <dir>/ca.key  ca.crt        the certificate authority
    <dir>/operator.key  .crt    the operator's identity at the broker
    <dir>/broker/               all that mosquitto reads, see :mod:`edgeslm.fleet.broker`
    <dir>/releases/             the release repository, see :mod:`edgeslm.fleet.release_files`

What always holds: the directory is for its owner alone; making a fleet can be cut off anywhere and be done again,
and never replaces a key; a key is written after its certificate, so where there is a key both are whole.

Left to others: what the files mean to the broker, and the store's tables.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import FleetError, FleetSetupError, SigningKeyError
from edgeslm.files import clear_partial, locked, read_bounded, replace_file
from edgeslm.fleet.broker_files import OPERATOR
from edgeslm.fleet.ca import (
    CertificateAuthority,
    common_name,
    is_encrypted,
    key_pem,
    new_key,
    read_key,
    self_signed,
)
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import MAX_TRUST_ROOT_CHARS
from edgeslm.schema.fleet import FleetConfig

CONFIG, DATABASE = "fleet.yaml", "fleet.db"
MIN_PASSPHRASE_BYTES = 12
_LOCK = ".lock"
_MAX_FILE_BYTES = 4 * 2**20
_SHORTEST_DEVICE = "d" * 16
"""A fleet's name leaves room for devices of at least this length in a certificate."""

Passphrase = Callable[[Path], bytes]
"""Gives the passphrase of a key file; called only where the key is encrypted."""


def default_fleets_dir() -> Path:
    """Where fleets lie by default: ``~/.local/share/edgeslm/fleets``, or below ``XDG_DATA_HOME``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "edgeslm" / "fleets"


def locate(name: str | None, fleets_dir: Path) -> Path:
    """The directory of the fleet called `name`, or of the only one in `fleets_dir`.

    Raises:
        FleetSetupError: there is none, or there are several and no name.
    """
    found = sorted(entry.parent.name for entry in fleets_dir.glob(f"*/{CONFIG}"))
    if name is None and len(found) == 1:
        name = found[0]
    if name in found:
        return fleets_dir / name
    known = f"There are: {', '.join(found)}" if found else "Make one with: edgeslm fleet init"
    if name is None and found:
        raise FleetSetupError("which fleet?", path=str(fleets_dir), hint=f"{known}. Name one with --fleet")
    raise FleetSetupError(
        f"no fleet{f' {name!r}' if name else ''} in {fleets_dir}", path=str(fleets_dir), hint=known
    )


class FleetDirectory:
    """An existing fleet.

    Attributes:
        root: its directory.
        config: its settings.
    """

    def __init__(self, root: Path) -> None:
        """Read the settings.

        Raises:
            FleetSetupError: there is no fleet, or its settings are wrong.
        """
        self.root = root
        self.config = _read_config(root / CONFIG)

    @property
    def name(self) -> str:
        """Of the fleet."""
        return self.config.name

    @property
    def authority_key(self) -> Path:
        """The authority's private key."""
        return self.root / "ca.key"

    @property
    def authority_certificate(self) -> Path:
        """The authority's certificate, which everybody in the fleet trusts."""
        return self.root / "ca.crt"

    @property
    def operator_key(self) -> Path:
        """The operator's private key."""
        return self.root / "operator.key"

    @property
    def operator_certificate(self) -> Path:
        """The operator's certificate, by which the broker knows the operator."""
        return self.root / "operator.crt"

    @property
    def broker(self) -> Path:
        """Directory of what mosquitto reads."""
        return self.root / "broker"

    @property
    def releases(self) -> Path:
        """Directory of the release repository."""
        return self.root / "releases"

    def open_store(self) -> Store:
        """Open the store, brought up to date.

        Raises:
            FleetError: as :class:`~edgeslm.fleet.store.database.Store` raises it.
        """
        return Store(self.config.database or sqlite_url(self.root / DATABASE))

    def authority_pem(self) -> str:
        """The authority's certificate.

        Raises:
            FleetError: it cannot be read.
        """
        return read_file(self.authority_certificate).decode("ascii", "replace")

    def authority(self, passphrase: Passphrase) -> CertificateAuthority:
        """The authority, ready to sign.

        Raises:
            SigningKeyError: the key cannot be used.
            CertificateError: key and certificate do not belong together.
            FleetError: a file cannot be read.
        """
        pem = read_file(self.authority_key)
        secret = passphrase(self.authority_key) if is_encrypted(pem) else None
        key = read_key(pem, secret, str(self.authority_key))
        return CertificateAuthority.load(key, read_file(self.authority_certificate))

    def trust_root(self) -> bytes | None:
        """The newest root of the release repository, which new devices begin with; ``None`` without a repository.

        Raises:
            FleetError: it cannot be read, or is too large to be sent.
        """
        names = (self.releases / "public" / "metadata").glob("*.root.json")
        roots = [path for path in names if path.name.partition(".")[0].isdecimal()]
        if not roots:
            return None
        newest = max(roots, key=lambda path: int(path.name.partition(".")[0]))
        root = read_file(newest)
        if len(root) > MAX_TRUST_ROOT_CHARS * 3 // 4:
            raise FleetError(f"{newest} has {len(root)} bytes, too many to be sent", path=str(newest))
        return root

    def operator_config(self) -> BrokerConfig:
        """How the operator reaches the broker: where it listens on this machine alone, on this machine."""
        broker = self.config.broker
        return BrokerConfig(
            host=broker.bind if broker.bind is not None and _is_loopback(broker.bind) else broker.host,
            port=broker.operator_port,
            ca_file=self.authority_certificate,
            cert_file=self.operator_certificate,
            key_file=self.operator_key,
            session_expiry_s=0,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_fleet(
    root: Path, config: FleetConfig, *, passphrase: bytes | None, now: datetime
) -> FleetDirectory:
    """Make the fleet's directory with keys, settings and store; what is there already stays as it is.

    Args:
        root: its directory; it may exist, with the same fleet or empty.
        config: settings; those of a fleet that is there have to be the same.
        passphrase: encrypts the authority's key.
        now: from when the authority counts its life.

    Raises:
        FleetSetupError: another fleet, or something else, is there, or the name is too long for certificates.
        SigningKeyError: the passphrase is too short.
        FleetError: the disk or the database refuses.
    """
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise SigningKeyError(
            f"the passphrase is shorter than {MIN_PASSPHRASE_BYTES} bytes", hint="Take several words"
        )
    common_name(config.name, _SHORTEST_DEVICE)
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (root / CONFIG).exists() and any(not entry.name.startswith(".") for entry in root.iterdir()):
            raise FleetSetupError(f"{root} is neither empty nor a fleet", path=str(root))
        with locked(root / _LOCK):
            clear_partial(root)
            return _complete(root, config, passphrase, now)
    except OSError as error:
        raise FleetError(f"{error.filename or root}: {error.strerror}", path=str(root)) from error


def _complete(root: Path, config: FleetConfig, passphrase: bytes | None, now: datetime) -> FleetDirectory:
    if (root / CONFIG).exists():
        found = _read_config(root / CONFIG)
        if found != config:
            raise FleetSetupError(
                f"{root} holds fleet '{found.name}' already, with other settings",
                path=str(root),
                hint=f"Change {root / CONFIG} instead, or take another directory",
            )
    else:
        replace_file(root / CONFIG, settings_text(config).encode(), mode=0o600)
    fleet = FleetDirectory(root)
    if not fleet.authority_key.exists():
        authority = CertificateAuthority.create(config.name, now)
        replace_file(fleet.authority_certificate, authority.certificate_pem.encode())
        replace_file(fleet.authority_key, key_pem(authority.key, passphrase), mode=0o600)
    if not fleet.operator_key.exists():
        key = new_key()
        replace_file(fleet.operator_certificate, self_signed(key, OPERATOR, now).encode())
        replace_file(fleet.operator_key, key_pem(key), mode=0o600)
    fleet.open_store().close()
    return fleet


def read_file(path: Path) -> bytes:
    """The bytes of a file of the fleet.

    Raises:
        FleetError: it cannot be read, or is far too large.
    """
    try:
        data = read_bounded(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror}", path=str(path)) from error
    if len(data) > _MAX_FILE_BYTES:
        raise FleetError(f"{path} has more than {_MAX_FILE_BYTES} bytes", path=str(path))
    return data


def _read_config(path: Path) -> FleetConfig:
    if not path.is_file():
        raise FleetSetupError(
            f"no fleet at {path.parent}", path=str(path), hint="Make one with: edgeslm fleet init"
        )
    try:
        return FleetConfig.model_validate(yaml.safe_load(read_file(path)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FleetSetupError(
            f"{path} is no YAML: {' '.join(str(error).split())[:300]}", path=str(path)
        ) from error
    except ValidationError as error:
        raise FleetSetupError(
            f"{path}: {describe(error)}", path=str(path), hint="See docs/fleet.md"
        ) from error


def settings_text(config: FleetConfig) -> str:
    """What stands in ``fleet.yaml``."""
    settings = config.model_dump(mode="json", exclude_none=True)
    return "# Settings of this fleet. See docs/fleet.md.\n" + yaml.safe_dump(settings, sort_keys=False)
