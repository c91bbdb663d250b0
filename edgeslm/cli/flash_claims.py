"""Claims for the cards of a batch: made by the fleet of this machine, or brought as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edgeslm.clock import utc_now
from edgeslm.errors import DeviceStateError, UnknownDeviceError, UsageError

if TYPE_CHECKING:
    from edgeslm.cli.fleet_common import Fleet
    from edgeslm.schema.enrol import Claim


def claims_in(directory: Path) -> dict[str, Claim]:
    """The claims that lie in `directory`, by the device that they name.

    Raises:
        ClaimError: one cannot be read, is none, or has expired.
        UsageError: there are none; or they name no device, one device twice, or several fleets.
    """
    from edgeslm.flash.payload.claims import read_claim  # noqa: PLC0415

    found: dict[str, Claim] = {}
    for path in sorted(directory.glob("*.json")):
        claim = read_claim(path, now=utc_now())
        if claim.device is None:
            raise UsageError(
                f"{path} names no device", hint="Make it with: edgeslm fleet claim --device NAME --out FILE"
            )
        if claim.device in found:
            raise UsageError(f"{directory} holds two claims for '{claim.device}'", hint="Take one away")
        found[claim.device] = claim
    if not found:
        raise UsageError(f"{directory} holds no claims (*.json)")
    if len(fleets := sorted({claim.fleet for claim in found.values()})) > 1:
        raise UsageError(f"{directory} holds claims of several fleets: {', '.join(fleets)}")
    return found


class FileClaims:
    """Claims that were brought."""

    def __init__(self, claims: Mapping[str, Claim]) -> None:
        self._claims = claims
        self.fleet = next(iter(claims.values())).fleet
        self.names = tuple(claims)

    def begin(self, names: Sequence[str], earlier: Sequence[str]) -> None:
        """Make sure that each name has one.

        Raises:
            UsageError: one has none.
        """
        del earlier
        if missing := [name for name in names if name not in self._claims]:
            raise UsageError(f"there is no claim for {', '.join(missing[:5])}")

    def claim(self, name: str) -> Claim:
        """The one for `name`."""
        return self._claims[name]

    def end(self, done: Sequence[str]) -> None:
        """Files stay as they are."""


class FleetClaims:
    """Claims that the fleet makes now. Their secrets are in memory alone, and on the cards."""

    def __init__(self, fleet: Fleet, *, life: timedelta, replaces: bool) -> None:
        """Take the fleet.

        Args:
            life: how long a board may take to join.
            replaces: devices of these names may be there already, and get new keys.
        """
        self._fleet = fleet
        self._life = life
        self._replaces = replaces
        self._claims: dict[str, Claim] = {}
        self.fleet = fleet.directory.name

    def begin(self, names: Sequence[str], earlier: Sequence[str]) -> None:
        """Make one for each name, and take back what an earlier run made for them.

        Raises:
            DeviceStateError: a name belongs to a device in use.
            FleetError: the store or the broker's files cannot be written.
        """
        from edgeslm.fleet.claims import issue_claim  # noqa: PLC0415

        directory, now = self._fleet.directory, utc_now()
        self._revoke(earlier)
        with self._fleet.store.write() as session:
            for name in names:
                self._claims[name] = issue_claim(
                    session,
                    directory.config,
                    directory.authority_pem(),
                    device=name,
                    profile=None,
                    replaces=self._replaces,
                    life=self._life,
                    actor=self._fleet.actor,
                    now=now,
                ).claim
        self._fleet.sync_broker()

    def claim(self, name: str) -> Claim:
        """The one for `name`."""
        return self._claims[name]

    def end(self, done: Sequence[str]) -> None:
        """Take back what is on no card that was done."""
        left = [claim.claim for name, claim in self._claims.items() if name not in done]
        if left:
            self._revoke(left)
            self._fleet.sync_broker()

    def _revoke(self, claims: Sequence[str]) -> None:
        from edgeslm.fleet.claims import revoke_claim  # noqa: PLC0415

        with self._fleet.store.write() as session:
            for claim in claims:
                with suppress(UnknownDeviceError, DeviceStateError):
                    revoke_claim(session, claim, actor=self._fleet.actor, now=utc_now())


BatchClaims = FileClaims | FleetClaims
