"""Which version may follow which."""

from __future__ import annotations

from edgeslm.errors import DowngradeError, SecurityFloorError
from edgeslm.schema.agent_release import AgentTarget
from edgeslm.schema.base import version_key
from edgeslm.schema.release import HeldRelease, ReleaseTarget


def highest(first: str, *others: str) -> str:
    """The highest of some semantic versions."""
    return max((first, *others), key=version_key)


def check_version(target: ReleaseTarget, *, held: HeldRelease | None, allow_downgrade: bool) -> None:
    """Refuse a release that must not replace what runs.

    Nothing goes below the security floor: the highest that trusted metadata states for the name and that the running
    package states itself. Above it, an older version than the running one is taken only where that is asked for.

    Args:
        target: the release.
        held: what runs under its name, if anything.
        allow_downgrade: an older version than the running one is meant.

    Raises:
        SecurityFloorError: below the floor.
        DowngradeError: older than what runs, and not meant.
    """
    info = target.info
    floor = highest(target.floor, info.security_floor, *([held.security_floor] if held else []))
    if version_key(info.version) < version_key(floor):
        raise SecurityFloorError(
            f"{info.name} {info.version} is below the security floor {floor}",
            role=target.role, expected=f"at least {floor}", actual=info.version,
        )  # fmt: skip
    if held and version_key(info.version) < version_key(held.version) and not allow_downgrade:
        raise DowngradeError(
            f"{info.name} {info.version} is older than the {held.version} that runs",
            role=target.role, expected=f"at least {held.version}", actual=info.version,
            hint="Assign it with the downgrade allowed if it is meant",
        )  # fmt: skip


def check_agent_version(target: AgentTarget, *, running: str, allow_downgrade: bool) -> None:
    """Refuse a version of the agent that must not replace the running one; the rules are those of packages.

    Args:
        target: the version.
        running: the version that asks.
        allow_downgrade: an older version than the running one is meant.

    Raises:
        SecurityFloorError: below the floor.
        DowngradeError: older than what runs, and not meant.
    """
    version = target.info.version
    floor = highest(target.floor, target.info.security_floor)
    if version_key(version) < version_key(floor):
        raise SecurityFloorError(
            f"edgeslm {version} is below the security floor {floor}",
            role="targets", expected=f"at least {floor}", actual=version,
        )  # fmt: skip
    if version_key(version) < version_key(running) and not allow_downgrade:
        raise DowngradeError(
            f"edgeslm {version} is older than the {running} that runs",
            role="targets", expected=f"at least {running}", actual=version,
            hint="Ask for it with the downgrade allowed if it is meant",
        )  # fmt: skip
