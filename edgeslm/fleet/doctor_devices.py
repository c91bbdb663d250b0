"""What is the matter with a fleet's devices, and what waits for a person: facts in, sentences out. Pure.

As in :mod:`edgeslm.fleet.doctor`; nothing here keeps the fleet as a whole from its work, so nothing here fails it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from edgeslm.fleet.doctor import NAMED, SOON, TEXT_CHARS, Finding, days, some
from edgeslm.schema.base import version_key
from edgeslm.schema.fleet import DeviceFacts, EnrolmentRecord
from edgeslm.schema.message import DeviceState
from edgeslm.schema.rollout import RolloutView

SILENT_AFTER: Final = timedelta(days=7)
NEVER_SEEN_AFTER: Final = timedelta(days=1)
TAKEN_UP_AFTER: Final = timedelta(hours=1)
PUBLISHED_AFTER: Final = timedelta(minutes=5)

Presence = Mapping[str, DeviceState]


def check_presence(devices: Sequence[DeviceFacts], presence: Presence | None, now: datetime) -> list[Finding]:
    """Who is there, and who was not for long.

    Args:
        devices: in use.
        presence: as the broker has it; ``None`` if that cannot be asked, and the store has to do.
        now: the present time.
    """
    is_online = {
        one.name: (one.presence if presence is None else presence.get(one.name)) == "online"
        for one in devices
    }
    silent = _names(
        one
        for one in devices
        if not is_online[one.name] and one.last_seen_at is not None and now - one.last_seen_at > SILENT_AFTER
    )
    unseen = _names(
        one
        for one in devices
        if not is_online[one.name] and one.last_seen_at is None and now - one.created_at > NEVER_SEEN_AFTER
    )
    online = sum(is_online.values())
    detail = f"{online} of {len(devices)} online"
    if silent or unseen:
        parts = [f"silent for more than {SILENT_AFTER.days} days: {some(silent)}"] * bool(silent)
        parts += [f"joined, and never there: {some(unseen)}"] * bool(unseen)
        found = Finding(
            name="presence", status="warning", detail=f"{detail}; {'; '.join(parts)}",
            advice="Look at board and network, or take them out of use: edgeslm fleet retire DEVICE",
            devices=tuple(sorted({*silent, *unseen})),
        )  # fmt: skip
    else:
        found = Finding(name="presence", status="ok", detail=detail)
    return [found, *_check_service(devices, presence)]


def _check_service(devices: Sequence[DeviceFacts], presence: Presence | None) -> list[Finding]:
    """Whether somebody writes down what the broker is told."""
    if presence is None:
        return []
    other = _names(one for one in devices if one.presence != presence.get(one.name, one.presence))
    if other:
        detail = f"the store does not know what the broker does of {some(other)}"
        advice = "Devices join, renew and are recorded only while this runs: edgeslm fleet serve"
        return [Finding(name="service", status="warning", detail=detail, advice=advice, devices=other)]
    return [Finding(name="service", status="ok", detail="the store knows what the broker does")]


def check_device_certificates(
    devices: Sequence[DeviceFacts], certificate_days: float, now: datetime
) -> Finding:
    """Devices whose certificate is over, or that did not renew it in time."""
    soon = timedelta(days=certificate_days) / 6
    over = _names(one for one in devices if one.expires_at is not None and one.expires_at <= now)
    late = _names(one for one in devices if one.expires_at is not None and now < one.expires_at <= now + soon)
    if over or late:
        parts = [f"over: {some(over)}"] * bool(over)
        parts += [f"in the last sixth of its life: {some(late)}"] * bool(late)
        advice = (
            "They need a new claim: edgeslm fleet claim --device DEVICE"
            if over
            else "They renew by themselves while they are on and edgeslm fleet serve runs"
        )
        return Finding(
            name="identity", status="warning", detail=f"certificate {'; '.join(parts)}", advice=advice,
            devices=tuple(sorted({*over, *late})),
        )  # fmt: skip
    return Finding(name="identity", status="ok", detail="all certificates of devices are good for a while")


def check_findings(devices: Sequence[DeviceFacts]) -> Finding:
    """What is odd about machines, and whose figures are not believed."""
    odd = [one for one in devices if one.finding is not None]
    doubted = _names(one for one in devices if one.quarantine is not None)
    if not odd and not doubted:
        return Finding(name="oddities", status="ok", detail="nothing is odd about any device")
    parts, advice = [], []
    if odd:
        parts.append(some([f"{one.name} is {one.finding}" for one in odd]))
        advice.append("see edgeslm fleet show DEVICE, then edgeslm fleet approve or revoke")
    if doubted:
        parts.append(f"in quarantine: {some(doubted)}")
        advice.append("see edgeslm fleet quarantine list")
    text = "; ".join(advice)
    return Finding(
        name="oddities", status="warning", detail="; ".join(parts), advice=text[0].upper() + text[1:],
        devices=tuple(sorted({*_names(odd), *doubted})),
    )  # fmt: skip


def check_agents(devices: Sequence[DeviceFacts]) -> Finding:
    """Versions of edgeslm on devices."""
    counts = Counter(one.agent for one in devices if one.agent is not None)
    if not counts:
        return Finding(name="agents", status="ok", detail="no device has told its version yet")
    versions = sorted(counts, key=_version_order)
    detail = ", ".join(f"{version[:40]} on {counts[version]}" for version in versions[-NAMED:])
    if len(versions) == 1:
        return Finding(name="agents", status="ok", detail=detail)
    behind = _names(one for one in devices if one.agent is not None and one.agent != versions[-1])
    return Finding(
        name="agents", status="warning", detail=f"{len(versions)} versions: {detail}",
        advice="See docs/agent-update.md: edgeslm fleet exec update-agent --version VERSION", devices=behind,
    )  # fmt: skip


def _version_order(version: str) -> tuple[bool, tuple[int, int, int, int, str], str]:
    try:
        return True, version_key(version), version
    except ValueError:
        return False, (0, 0, 0, 0, ""), version


@dataclass(frozen=True)
class AssignmentFact:
    """What was assigned to a device last.

    Attributes:
        followed: number of the one that it reports to follow; ``None`` if it reports nothing.
        renews: the fleet makes it anew before it expires.
        failed: what of it did not work, in a few words.
    """

    device: str
    seq: int
    published_seq: int
    issued_at: datetime
    expires_at: datetime
    renews: bool
    followed: int | None
    failed: str | None = None


def check_assignments(found: Sequence[AssignmentFact], online: Collection[str], now: datetime) -> Finding:
    """Assignments that do not reach their devices, are not followed, end, or did not work.

    Args:
        found: one for each device that has any.
        online: devices that are there.
        now: the present time.
    """
    unsent = _devices(
        one for one in found if one.published_seq != one.seq and now - one.issued_at > PUBLISHED_AFTER
    )
    ignored = _devices(
        one
        for one in found
        if one.device in online
        and (one.followed or 0) < one.seq
        and now - one.issued_at > TAKEN_UP_AFTER
        and one.expires_at > now
    )
    # One that was taken up goes on without it; one that was not can do nothing with it any more.
    ending = _devices(
        one for one in found if ((one.followed or 0) < one.seq or one.renews) and one.expires_at <= now + SOON
    )
    failed = [one for one in found if one.failed is not None]
    parts = [f"the broker does not have them for {some(unsent)}"] * bool(unsent)
    parts += [f"not taken up by {some(ignored)}"] * bool(ignored)
    parts += [f"over, or nearly, for {some(ending)}"] * bool(ending)
    parts += [f"failed on {some([f'{one.device} ({one.failed})' for one in failed])}"] * bool(failed)
    if not parts:
        detail = f"assigned to {len(found)}, and followed" if found else "nothing is assigned"
        return Finding(name="assignments", status="ok", detail=detail)
    if unsent or ending:
        advice = "edgeslm fleet serve publishes and renews them: is it running, and has it the key for assignments?"
    else:
        advice = "See edgeslm fleet assignments DEVICE, and try again with: edgeslm fleet exec retry"
    return Finding(
        name="assignments", status="warning", detail="; ".join(parts), advice=advice,
        devices=tuple(sorted({*unsent, *ignored, *ending, *_devices(failed)})),
    )  # fmt: skip


# --- what waits for somebody --------------------------------------------------------------------------------


def check_pending(pending: Sequence[EnrolmentRecord], now: datetime) -> Finding:
    """Devices that wait to join."""
    if not pending:
        return Finding(name="joining", status="ok", detail="no device waits to join")
    oldest = min(one.requested_at for one in pending)
    names = [one.device or one.claim for one in pending]
    return Finding(
        name="joining", status="warning",
        detail=f"{some(names)} wait for approval, the longest for {days(now - oldest)}",
        advice="edgeslm fleet pending, then approve or reject", devices=tuple(names),
    )  # fmt: skip


def check_rollouts(going: Sequence[RolloutView], *, is_carried_out: bool) -> Finding:
    """Rollouts that need a person, or somebody who carries them out.

    Args:
        going: those that are not over.
        is_carried_out: some process does.
    """
    if not going:
        return Finding(name="rollouts", status="ok", detail="none is under way")
    waiting = [one for one in going if one.phase in {"waiting", "paused"}]
    if waiting:
        parts = [
            f"{one.id} ({one.release}) is {one.phase}{f', {one.reason}' if one.reason else ''}"[:TEXT_CHARS]
            for one in waiting
        ]
        return Finding(name="rollouts", status="warning", detail=some(parts), advice=waiting[0].next or None)
    detail = some([f"{one.id} ({one.release}): {one.passed} of {one.devices}" for one in going])
    if not is_carried_out:
        return Finding(
            name="rollouts", status="warning", detail=f"{detail}, and nobody carries it out",
            advice=f"edgeslm fleet serve, or edgeslm fleet rollout resume {going[0].id}",
        )  # fmt: skip
    return Finding(name="rollouts", status="ok", detail=f"under way: {detail}")


# --- words --------------------------------------------------------------------------------------------------


def _names(devices: Iterable[DeviceFacts]) -> tuple[str, ...]:
    return tuple(sorted(one.name for one in devices))


def _devices(found: Iterable[AssignmentFact]) -> tuple[str, ...]:
    return tuple(sorted(one.device for one in found))
