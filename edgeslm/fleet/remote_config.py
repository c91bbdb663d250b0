"""Configurations that an operator gives to devices: made, signed, written down, and what became of them.

What always holds: a version is used once, as it is on the disk before anything leaves; every configuration is in the
audit log, in the transaction that gives it its version; what a device would refuse for its form or its signature is
refused here, before it is sent.

A configuration says everything that is set from afar: the next one replaces it as a whole. One without settings takes
everything back.

Functions take a session of the store and commit nothing themselves.

Left to others: sending it and waiting for the answer (:mod:`edgeslm.fleet.operations`), and everything that the device
makes of it (``docs/remote-config.md``). The device checks again whatever is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from pydantic import ValidationError
from securesystemslib.signer import Signer
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from edgeslm import codec
from edgeslm.errors import ConfigError, DeviceStateError, UsageError
from edgeslm.fleet.assignments import last_reported
from edgeslm.fleet.registry import audit, need_device, note_event
from edgeslm.fleet.signing import next_seq, sign_remote_config
from edgeslm.fleet.store.configs import ConfigRow
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.schema.config import AgentConfig
from edgeslm.schema.fleet import Record
from edgeslm.schema.remote_config import (
    DEFAULT_CONFIG_LIFETIME,
    DEFAULT_CONFIRM_S,
    RemoteConfig,
    check_settings,
    flattened,
    settings_text,
)
from edgeslm.trust.remote_config import verify_remote_config

_SHOWN = 50


ConfigStanding = Literal["sent", "committed", "rolled_back", "refused", "failed", "expired", "cancelled"]


class ConfigRecord(Record):
    """One configuration that was signed for a device.

    Attributes:
        command: id of the request that brings it.
        settings: the overlay.
        state: what became of it, as far as the fleet knows.
        detail: why.
    """

    device: str
    version: int
    command: str
    settings: dict[str, Any]
    state: ConfigStanding
    detail: str = ""
    confirm_s: int
    issued_at: datetime
    issued_by: str
    expires_at: datetime
    settled_at: datetime | None = None


# --- settings: pure -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One setting that differs.

    Attributes:
        key: dotted.
        kind: ``added`` to what is set from afar, ``removed`` from it, or ``changed``.
        before: the value; ``None`` where there was none.
        after: the value; ``None`` where there is none.
    """

    key: str
    kind: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


def check(settings: Mapping[str, Any]) -> None:
    """Make sure that `settings` may be set from afar, and are right by themselves.

    Whether they go together with the device's own settings is found on the device.

    Raises:
        ConfigError: they are not; it names the key.
    """
    check_settings(settings)
    settings_text(settings)
    try:
        AgentConfig.model_validate({"device": "any", **settings})
    except ValidationError as error:
        raise ConfigError(
            f"the settings: {codec.describe(error)}", hint="See docs/agent.md for every setting"
        ) from error


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What differs between two overlays, by dotted key."""
    old, new = flattened(before), flattened(after)
    changes = []
    for key in sorted({*old, *new}):
        if key not in old:
            changes.append(Change(key, "added", after=new[key]))
        elif key not in new:
            changes.append(Change(key, "removed", before=old[key]))
        elif old[key] != new[key]:
            changes.append(Change(key, "changed", old[key], new[key]))
    return changes


# --- the record ---------------------------------------------------------------------------------------------


def history(session: Session, device: str, *, limit: int = _SHOWN) -> list[ConfigRecord]:
    """The configurations of a device, newest first.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    row = need_device(session, device)
    reported = last_reported(session, row)
    rows = session.scalars(
        select(ConfigRow).where(ConfigRow.device_id == row.id).order_by(ConfigRow.version.desc()).limit(limit)
    )
    in_force = None if reported is None else reported.config
    return [_record(row.name, config, in_force) for config in rows]


def in_force(session: Session, device: str) -> ConfigRecord | None:
    """What is set from afar on a device, as far as the fleet knows: what it reports, else what it answered last.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    row = need_device(session, device)
    reported = last_reported(session, row)
    query = select(ConfigRow).where(ConfigRow.device_id == row.id).order_by(ConfigRow.version.desc())
    version = None if reported is None else reported.config
    answered = session.scalars(query.where(ConfigRow.outcome == "committed").limit(1)).one_or_none()
    # An answer is written down at once, a report is collected now and then.
    if version is not None and (answered is None or version > answered.version):
        told = session.scalars(query.where(ConfigRow.version == version)).one_or_none()
        return None if told is None else _record(row.name, told, version)
    return None if answered is None else _record(row.name, answered, answered.version)


def make(
    session: Session,
    fleet: str,
    device: str,
    settings: Mapping[str, Any],
    signers: Sequence[Signer],
    authority: Targets,
    *,
    command: str,
    actor: str,
    now: datetime,
    life: timedelta = DEFAULT_CONFIG_LIFETIME,
    confirm_s: int = DEFAULT_CONFIRM_S,
) -> tuple[RemoteConfig, str]:
    """Make, sign and write down the next configuration of a device; it is sent by whoever calls, afterwards.

    Args:
        fleet: its name.
        device: its name.
        settings: everything that is to be set from afar; none takes back what was.
        signers: the keys to which assignments of the fleet are delegated.
        authority: the published targets, which delegate.
        command: id of the request that is to bring it.
        actor: for the audit log.
        now: the present time.
        life: how long it can be taken up.
        confirm_s: seconds within which the device has to be at the broker with it.

    Returns:
        The configuration and its signed document.

    Raises:
        ConfigError: the settings may not be set, or are wrong.
        UnknownDeviceError: there is no such device.
        DeviceStateError: it is not in use.
        UsageError: for too long, or to be proved too fast or too slowly.
        RemoteConfigError: the device would not take it up, as the keys are not the right ones.
    """
    check(settings)
    row = need_device(session, device)
    if row.standing != "active":
        raise DeviceStateError(f"'{device}' is {row.standing}", name=device, state=row.standing)
    last = _last_version(session, row)
    try:
        config = RemoteConfig(
            fleet=fleet,
            device=device,
            device_key_sha256=row.key_sha256,
            version=next_seq(last, now),
            issued_at=now,
            expires_at=now + life,
            confirm_s=confirm_s,
            settings=settings_text(settings),
        )
    except ValidationError as error:
        raise UsageError(f"no configuration: {codec.describe(error)}") from error
    document = sign_remote_config(config, signers)
    verify_remote_config(
        document,
        authority,
        fleet=fleet,
        device=device,
        device_key_sha256=row.key_sha256,
        last_version=last,
        now=now,
    )
    session.add(
        ConfigRow(
            device_id=row.id,
            version=config.version,
            command=command,
            settings=config.settings,
            confirm_s=confirm_s,
            issued_at=config.issued_at,
            issued_by=actor,
            expires_at=config.expires_at,
            detail="",
        )
    )
    audit(
        session, actor, "configure", device, now, version=config.version, keys=" ".join(flattened(settings))
    )
    return config, document.decode("ascii")


def settle(
    session: Session, device: str, version: int, outcome: ConfigStanding, detail: str, now: datetime
) -> None:
    """Write down what became of a configuration, as its device answered; the first answer counts.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    row = need_device(session, device)
    config = session.scalars(
        select(ConfigRow).where(ConfigRow.device_id == row.id, ConfigRow.version == version)
    ).one_or_none()
    if config is None or config.outcome is not None or outcome == "sent":
        return
    config.outcome, config.detail, config.settled_at = outcome, detail[:500], now
    good = outcome == "committed"
    told = f"configuration {version} {outcome.replace('_', ' ')}" + (
        f": {detail}" if detail and not good else ""
    )
    note_event(session, device, "config", told[:500], now, severity="info" if good else "warning", device=row)


def supersede(session: Session, device: str, version: int, now: datetime) -> list[str]:
    """Give up what `device` has not answered before `version`; the ids of the requests, which are to be cleared.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    row = need_device(session, device)
    rows = session.scalars(
        select(ConfigRow).where(
            ConfigRow.device_id == row.id, ConfigRow.version < version, ConfigRow.outcome.is_(None)
        )
    ).all()
    reported = last_reported(session, row)
    for config in rows:
        is_used = reported is not None and reported.config == config.version
        config.outcome, config.settled_at = ("committed" if is_used else "cancelled"), now
        config.detail = "" if is_used else f"superseded by version {version}"
    return [config.command for config in rows]


def _last_version(session: Session, row: DeviceRow) -> int:
    newest = session.scalar(select(func.max(ConfigRow.version)).where(ConfigRow.device_id == row.id))
    reported = last_reported(session, row)
    return max(newest or 0, (reported.config if reported is not None else None) or 0)


def _record(device: str, row: ConfigRow, in_force: int | None) -> ConfigRecord:
    state: str = row.outcome or ("committed" if row.version == in_force else "sent")
    return ConfigRecord(
        device=device,
        version=row.version,
        command=row.command,
        settings=json.loads(row.settings),
        state=cast(ConfigStanding, state),
        detail=row.detail,
        confirm_s=row.confirm_s,
        issued_at=row.issued_at,
        issued_by=row.issued_by,
        expires_at=row.expires_at,
        settled_at=row.settled_at,
    )
