"""What a device remembers of the configurations that its fleet gave to it: its file of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.schema.base import FileModel, Sha256
from edgeslm.schema.remote_config import ConfigVersion, ConfirmSeconds, SettingsText

Reason = Annotated[str, StringConstraints(max_length=500)]
ConfigOutcome = Literal["committed", "rolled_back"]


class Overlay(FileModel):
    """One configuration that the fleet gave.

    Attributes:
        document_sha256: digest of the document that it came with.
    """

    version: ConfigVersion
    document_sha256: Sha256
    settings: SettingsText


class TrialOverlay(Overlay):
    """One that has yet to prove itself.

    Attributes:
        starts: of the agent with it, so far.
    """

    confirm_s: ConfirmSeconds
    starts: Annotated[int, Field(ge=0)] = 0


class SettledConfig(FileModel):
    """What became of the configuration tried last."""

    version: ConfigVersion
    document_sha256: Sha256
    outcome: ConfigOutcome
    reason: Reason = ""


class RemoteConfigState(FileModel):
    """Everything that a device remembers of configurations, in one file that is replaced as a whole.

    Attributes:
        device_key_sha256: digest of the public key that all this was meant for.
        last_version: of the newest that was ever taken up; no older one is taken up again.
        current: in force; ``None`` where the device's own file says everything.
        trial: tried now.
        settled: what became of the last trial.
    """

    v: Literal[1] = 1
    device_key_sha256: Sha256
    last_version: Annotated[int, Field(ge=0)] = 0
    current: Overlay | None = None
    trial: TrialOverlay | None = None
    settled: SettledConfig | None = None
