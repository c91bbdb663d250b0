"""Makes the assignments that a rollout needs: of its release, of what ran before, and anew before they expire.

What always holds: an assignment is planned against what the device reported last, so what cannot be is refused before
anything is sent; what it is numbered and signed in is the caller's transaction.

Left to others: numbering and signing (:mod:`edgeslm.fleet.assignments`), publishing
(:mod:`edgeslm.fleet.rollout.outbox`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Signer
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from edgeslm.errors import UpdateError
from edgeslm.fleet.assignments import DeviceView, Step, assign, last_reported, plan_step, view_device
from edgeslm.fleet.registry import need_device
from edgeslm.fleet.release_files import RepositoryFiles
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.schema.assignment import DEFAULT_LIFETIME, UpdateWindow
from edgeslm.schema.board import Board
from edgeslm.schema.release import ReleaseTarget

_FRESH_S = 5.0
_ACTOR = "controller"


@dataclass(frozen=True)
class Given:
    """An assignment that was made.

    Attributes:
        seq: its number.
        is_known: the device has reported, so `base_sha256` is what runs, or nothing does.
        doubt: why it may not lead where it should.
    """

    seq: int
    base_version: str | None = None
    base_sha256: str | None = None
    is_known: bool = False
    doubt: str = ""


class Assigner:
    """Makes assignments of one fleet."""

    def __init__(
        self,
        fleet: str,
        releases: Path,
        signers: Sequence[Signer],
        boards: Mapping[str, Board],
        *,
        life: timedelta = DEFAULT_LIFETIME,
    ) -> None:
        """Take the parts.

        Args:
            fleet: its name.
            releases: directory of the release repository.
            signers: the keys to which assignments of the fleet are delegated.
            boards: known types of boards.
            life: how long an assignment is valid.
        """
        self.life = life
        self._fleet = fleet
        self._directory = releases
        self._signers = tuple(signers)
        self._boards = boards
        self._read_at_s = float("-inf")
        self._known: tuple[ReleaseTarget, ...] = ()
        self._authority: Targets | None = None

    def give(
        self,
        session: Session,
        device: str,
        name: str,
        sha256: str,
        now: datetime,
        *,
        allow_downgrade: bool,
        force: bool,
        window: UpdateWindow | None,
    ) -> Given:
        """Assign a release to a device.

        Raises:
            UpdateError: the device cannot run it, or the release is not published any more.
            SecurityFloorError: it is below the security floor.
            DowngradeError: it is older than what runs, and that is not meant.
            DeviceStateError: the device is not in use.
            AssignmentError: the device would not follow what this key signs.
        """
        view, followed, is_known = self._view(session, device)
        step = plan_step(self._target(name, sha256), view, allow_downgrade=allow_downgrade, force=force)
        seq = self._assign(session, device, [step], followed, now, window=window)
        running = step.running
        return Given(
            seq,
            running.version if running is not None else None,
            running.sha256 if running is not None else None,
            is_known,
        )

    def send_back(self, session: Session, device: str, name: str, sha256: str | None, now: datetime) -> Given:
        """Assign a device what it ran before; at least it is no longer told to run the release.

        Args:
            name: of the release.
            sha256: package that it ran before; ``None`` if none.

        Raises:
            SecurityFloorError: that is below the security floor.
            DeviceStateError: the device is not in use.
            AssignmentError: the device would not follow what this key signs.
        """
        view, followed, _ = self._view(session, device)
        before = next((one for one in self._releases() if one.info.sha256 == sha256), None)
        if before is None:
            seq = self._assign(session, device, [], followed, now, without=[name])
            return Given(seq, doubt="what it ran is no published release" if sha256 is not None else "")
        step = plan_step(before, view, allow_downgrade=True, force=True, is_return=True)
        return Given(self._assign(session, device, [step], followed, now))

    def renew(
        self, session: Session, device: str, now: datetime, *, window: UpdateWindow | None = None
    ) -> int:
        """Make the assignment of a device anew as it is; its number.

        Raises:
            DeviceStateError: the device is not in use.
            AssignmentError: the device would not follow what this key signs.
        """
        reported = last_reported(session, need_device(session, device))
        followed = reported.assignment if reported is not None else 0
        return self._assign(session, device, [], followed, now, window=window)

    # --- inside ---

    def _view(self, session: Session, device: str) -> tuple[DeviceView, int, bool]:
        row = need_device(session, device)
        reported = last_reported(session, row)
        view = view_device(row, None, reported, self._boards)
        return view, reported.assignment if reported is not None else 0, reported is not None

    def _assign(
        self,
        session: Session,
        device: str,
        steps: Sequence[Step],
        followed: int,
        now: datetime,
        *,
        window: UpdateWindow | None = None,
        without: Collection[str] = (),
    ) -> int:
        known = self._releases()
        if self._authority is None:
            raise AssertionError("read with the releases")
        assignment, _ = assign(
            session, self._fleet, device, steps, self._signers, self._authority,
            known=known, followed=followed, life=self.life, actor=_ACTOR, now=now, window=window,
            without=without,
        )  # fmt: skip
        return assignment.seq

    def _target(self, name: str, sha256: str) -> ReleaseTarget:
        for target in self._releases():
            if target.info.sha256 == sha256 and target.info.name == name:
                return target
        raise UpdateError(f"{name} {sha256[:12]} is not published any more", cause="not_trusted")

    def _releases(self) -> tuple[ReleaseTarget, ...]:
        if time.monotonic() - self._read_at_s > _FRESH_S:
            self._authority = RepositoryFiles.open(self._directory).published().targets["targets"].signed
            self._known = ReleaseRepository(self._directory).releases()
            self._read_at_s = time.monotonic()
        return self._known
