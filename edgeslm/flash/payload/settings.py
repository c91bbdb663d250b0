"""``agent.yaml`` for a board: what the profile wants, in the agent's own words, held against its schema.

What always holds: what is written is accepted by the agent; no secret stands in it. A password lies in a file of
root's own and reaches the agent as a credential of its service.

A claim names the fleet, the device and the broker, and the agent takes them from there: with one, none of them is
written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError, PrepareError
from edgeslm.files import read_bounded
from edgeslm.flash.payload import layout
from edgeslm.flash.profiles import read_secret
from edgeslm.flash.tree import Entry
from edgeslm.schema.budget import Budget
from edgeslm.schema.config import AgentConfig
from edgeslm.schema.profile import Profile, ProfileBroker

PASSWORD_CREDENTIAL = "broker.password"  # noqa: S105 - the name of a file
_CREDENTIALS = f"/run/credentials/{layout.UNIT_NAME}"
_MAX_CA_BYTES = 65_536
_NAMELESS = "unnamed"


@dataclass(frozen=True)
class Settings:
    """What the agent is told.

    Attributes:
        config: as the agent will read it; its device is a placeholder where a claim brings the name.
        entries: ``agent.yaml``, and the files that it names.
        credentials: files of root's that the service hands to the agent: name, and path on the board.
    """

    config: AgentConfig
    entries: tuple[Entry, ...]
    credentials: tuple[tuple[str, str], ...]


def make_settings(
    profile: Profile, board: str, models: tuple[str, ...], *, device: str | None, has_claim: bool
) -> Settings:
    """Write down what a profile wants of the agent.

    Args:
        profile: with its parents, paths in it absolute.
        board: name of the board.
        models: as :class:`edgeslm.flash.payload.models.Models` names them.
        device: name of a device that has no claim.
        has_claim: fleet, device and broker come with a claim.

    Raises:
        ConfigError: the agent would not take it.
        ProfileSecretError: the broker's password cannot be read.
        PrepareError: the broker's authority cannot be read.
    """
    said: dict[str, Any] = {}
    if not has_claim and device is not None:
        said["device"] = device
    said["board"] = board
    entries = [Entry(layout.ETC, "directory", mode=0o755)]
    credentials: list[tuple[str, str]] = []
    if profile.broker is not None and not has_claim:
        said["broker"], files, credentials = _broker(profile.broker)
        entries += files
    said["models"] = list(models)
    said |= profile.agent.given()
    if profile.network.metered:
        said["updates"] = {**said.get("updates", {}), "is_metered": True}
    if profile.budget != Budget():
        said["budget"] = profile.budget.model_dump(mode="json", exclude_defaults=True)
    try:
        config = AgentConfig.model_validate({"device": _NAMELESS, **said})
    except ValidationError as error:
        raise ConfigError(
            f"profile '{profile.name}' makes no settings for an agent: {describe(error)}", key="agent"
        ) from error
    text = f"# From the profile {profile.name}; see docs/agent.md for what can stand here.\n"
    text += yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    entries.append(Entry(layout.SETTINGS, content=text.encode()))
    return Settings(config, tuple(entries), tuple(credentials))


def _broker(broker: ProfileBroker) -> tuple[dict[str, Any], list[Entry], list[tuple[str, str]]]:
    said: dict[str, Any] = {"host": broker.host, "port": broker.port}
    entries: list[Entry] = []
    credentials: list[tuple[str, str]] = []
    if broker.username is not None:
        said["username"] = broker.username
    if broker.password is not None:
        password = read_secret(broker.password)
        entries.append(Entry(layout.BROKER_PASSWORD, content=password.encode(), mode=0o600))
        credentials.append((PASSWORD_CREDENTIAL, layout.BROKER_PASSWORD))
        said["password_file"] = f"{_CREDENTIALS}/{PASSWORD_CREDENTIAL}"
    if broker.ca_file is not None:
        entries.append(Entry(layout.BROKER_CA, content=_authority(Path(broker.ca_file))))
        said["ca_file"] = layout.BROKER_CA
    return said, entries, credentials


def _authority(path: Path) -> bytes:
    try:
        data = read_bounded(path.resolve(), _MAX_CA_BYTES)
    except OSError as error:
        raise PrepareError(
            f"the broker's authority {path} cannot be read: {error.strerror or error}", what="broker.ca_file"
        ) from error
    if len(data) > _MAX_CA_BYTES or b"-----BEGIN CERTIFICATE-----" not in data:
        raise PrepareError(f"{path} is no certificate in PEM", what="broker.ca_file")
    return data
