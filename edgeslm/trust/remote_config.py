"""Whether a configuration from the fleet is one that this device may take up.

A configuration is a signed document (:mod:`edgeslm.trust.document`), signed by whoever may sign assignments for the
device. Unlike an assignment each is taken up once: what comes again was answered already, and what was rolled back is
not tried again by itself.
"""

from __future__ import annotations

from datetime import datetime

from tuf.api.metadata import Targets

from edgeslm.errors import RemoteConfigError
from edgeslm.schema.remote_config import MAX_REMOTE_CONFIG_BYTES, RemoteConfig
from edgeslm.trust.document import Kind, check_address, check_time, read_document

CONFIGURATION = Kind(
    name="configuration",
    model=RemoteConfig,
    max_bytes=MAX_REMOTE_CONFIG_BYTES,
    format_error=RemoteConfigError,
    signature_error=RemoteConfigError,
    foreign_error=RemoteConfigError,
    expired_error=RemoteConfigError,
)


def verify_remote_config(
    data: bytes,
    authority: Targets,
    *,
    fleet: str,
    device: str,
    device_key_sha256: str,
    last_version: int,
    now: datetime,
) -> RemoteConfig:
    """The configuration in `data`, if this device may take it up.

    Args:
        data: the signed document.
        authority: the trusted top-level targets, which delegate the signing.
        fleet: of this device.
        device: this device.
        device_key_sha256: digest of its public key.
        last_version: of the configuration that was taken up last; 0 if none.
        now: the trusted time.

    Raises:
        RemoteConfigError: no configuration in its one form; not signed by enough of the keys that are delegated to;
            for another fleet, device or device key; not newer than the one taken up last; or its time is over.
    """
    config = read_document(CONFIGURATION, data, authority, fleet=fleet, device=device)
    check_address(CONFIGURATION, config, fleet=fleet, device=device, device_key_sha256=device_key_sha256)
    if config.version <= last_version:
        raise RemoteConfigError(
            "the configuration is not newer than the one taken up last",
            role=CONFIGURATION.name, expected=f"above {last_version}", actual=str(config.version),
        )  # fmt: skip
    check_time(CONFIGURATION, config, now)
    return config
