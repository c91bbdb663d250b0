"""Lets a device that has a claim and no identity yet join its fleet by itself, from within ``agent run``.

The claim comes as a credential of the service, or as a file. Whoever flashed the board put it there; it is used once,
and lies about afterwards without being of use to anybody.

What always holds: a device that is a member already is not touched, whatever claim lies there; what the device can do
without its fleet it does meanwhile, under the name that the claim gives it.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import edgeslm
from edgeslm.cli.wiring import IDENTITY_NAME, RULES_NAME, find_identity, load_settings, state_dir_of
from edgeslm.errors import ClaimError

if TYPE_CHECKING:
    from edgeslm.agent.joining import Joining
    from edgeslm.schema.enrol import Claim

log = logging.getLogger(__name__)

CREDENTIAL: Final = "claim.json"
NO_CREDENTIAL: Final = b"none"
"""As :mod:`edgeslm.flash.unit` writes it, where there is no claim."""
HEAD_START_S: Final = 15.0
"""So long a device with duties of its own waits for its fleet before it takes them up as a stranger: beginning anew a
moment after the models were loaded would cost more than that."""
_MAX_CLAIM_BYTES = 65_536


@dataclass(frozen=True)
class Stranger:
    """A device that has yet to join.

    Attributes:
        joining: tries to; not started yet.
        overrides: settings by which it runs until then.
        has_duties: there is something that it can do without its fleet.
    """

    joining: Joining
    overrides: Mapping[str, Any]
    has_duties: bool


def find_claim(file: Path | None, environment: Mapping[str, str]) -> Claim | None:
    """The claim that was left for this device; ``None`` where there is none.

    Args:
        file: named by a person; it has to be there.
        environment: of this process, for ``CREDENTIALS_DIRECTORY`` (systemd.exec(5)).

    Raises:
        ClaimError: it cannot be read, or is none; or the service's credentials are not where they should be.
    """
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if file is None and directory and not Path(directory).is_dir():
        raise ClaimError(
            f"systemd names {directory} for the credentials of this service, and it is not there",
            hint="In a container its mounts have to propagate: mount --make-rshared /",
        )
    path = file or (Path(directory) / CREDENTIAL if directory else None)
    if path is None or (file is None and not path.exists()):
        return None
    from edgeslm.codec import decode  # noqa: PLC0415
    from edgeslm.errors import CodecError  # noqa: PLC0415
    from edgeslm.files import read_bounded  # noqa: PLC0415
    from edgeslm.schema.enrol import Claim  # noqa: PLC0415

    try:
        data = read_bounded(path, _MAX_CLAIM_BYTES)
    except OSError as error:
        raise ClaimError(f"{path} cannot be read: {error.strerror or error}") from error
    if file is None and data.strip() == NO_CREDENTIAL:
        return None
    try:
        return decode(Claim, data, max_bytes=_MAX_CLAIM_BYTES)
    except CodecError as error:
        raise ClaimError(f"{path} is no claim: {error}", hint="Make one with: edgeslm fleet claim") from error


def find_stranger(
    claim: Claim | None,
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    on_joined: Callable[[], None],
    on_state: Callable[[str], None],
) -> Stranger | None:
    """What joins with `claim`; ``None`` where there is none, or this device is a member already.

    Args:
        path: of the configuration file.
        overrides: from flags and environment.
        on_joined: called on another thread.
        on_state: hears what is waited for.

    Raises:
        ConfigError: the file cannot be read.
        IdentityError: an identity is there and cannot be read.
    """
    if claim is None:
        return None
    file: Mapping[str, Any] = {} if path is None else load_settings(path)
    state_dir = state_dir_of(file, overrides)
    identity = find_identity(state_dir)
    if identity is not None:
        if identity.claim != claim.claim:
            facts = identity.facts
            log.warning(
                "claim %s is left alone: this device is %s/%s", claim.claim, facts.fleet, facts.device
            )
        return None
    names = {
        "fleet": overrides.get("fleet") or file.get("fleet") or claim.fleet,
        "device": overrides.get("device") or file.get("device") or claim.device or provisional_name(),
    }
    proposed = claim.device or overrides.get("device") or file.get("device")
    board = overrides.get("board") or file.get("board")
    return Stranger(
        _joining(claim, state_dir, proposed, board, on_joined, on_state),
        {**overrides, **names},
        _has_duties(file, overrides, path, state_dir),
    )


def provisional_name() -> str:
    """A name until the fleet gives one: the host's, as far as it can be one."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:64]
    return name if name and name != "pool" else "unnamed"


def _joining(
    claim: Claim,
    state_dir: Path,
    device: str | None,
    board: str | None,
    on_joined: Callable[[], None],
    on_state: Callable[[str], None],
) -> Joining:
    from edgeslm.agent.enrolment import join_fleet  # noqa: PLC0415
    from edgeslm.agent.joining import Joining  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.trust.identity import IdentityStore  # noqa: PLC0415
    from edgeslm.trust.machine import read_machine  # noqa: PLC0415

    def attempt(timeout_s: float, tell: Callable[[str], None]) -> None:
        store = IdentityStore(state_dir / IDENTITY_NAME)
        join_fleet(
            store,
            claim,
            MqttLink,
            device=device,
            machine=read_machine(choose_board(board).name, store.boots_file),
            agent=edgeslm.__version__,
            timeout_s=timeout_s,
            on_state=lambda text: tell(f"joining {claim.fleet} at {claim.host}:{claim.port}: {text}"),
        )

    return Joining(attempt, on_joined, on_state)


def _has_duties(
    file: Mapping[str, Any], overrides: Mapping[str, Any], path: Path | None, state_dir: Path
) -> bool:
    """Whether it has rules, sentences or a broker that need no fleet."""
    home = file.get("homeassistant")
    if file.get("rules") or (isinstance(home, dict) and home.get("wyoming_port")):
        return True
    if file.get("broker") or overrides.get("broker_host"):
        return True
    places = [state_dir / RULES_NAME, *([] if path is None else [path.resolve().parent / RULES_NAME])]
    return any(place.is_dir() for place in places)
