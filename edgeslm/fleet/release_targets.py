"""What targets metadata says: releases, security floors, and who else may sign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Role, TargetFile, Targets

from edgeslm.errors import ReleaseRepositoryError
from edgeslm.fleet.release_drafts import Drafts
from edgeslm.fleet.release_files import TARGETS
from edgeslm.fleet.release_metadata import RoleKeys
from edgeslm.schema.base import version_key
from edgeslm.schema.package import Manifest
from edgeslm.schema.release import FLOORS_FIELD, NO_FLOOR, ReleaseInfo, ReleaseRequirements, target_path
from edgeslm.trust.releases import release_info, security_floor
from edgeslm.trust.versions import highest

_NAMES = re.compile(r"[a-z0-9-]{1,64}|[a-z0-9-]{0,63}\*")


# --- releases in targets ------------------------------------------------------------------------------------


def described(manifest: Manifest, sha256: str, size_bytes: int) -> ReleaseInfo:
    """What a package's manifest says about it as a release."""
    runtimes = dict.fromkeys(runtime for graph in manifest.graphs for runtime in graph.runtimes)
    return ReleaseInfo(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        sha256=sha256,
        size_bytes=size_bytes,
        security_floor=manifest.security_floor,
        requires=ReleaseRequirements(
            ram_mb=manifest.requires.ram_mb,
            cpu_features=manifest.requires.cpu_features,
            agent=manifest.requires.agent,
            runtimes=tuple(runtimes),
        ),
    )


def put(targets: Targets, info: ReleaseInfo) -> None:
    """Let `targets` release it, in place of what they said of that name and version."""
    path = target_path(info.name, info.version)
    custom = info.model_dump(mode="json", exclude_none=True)
    targets.targets[path] = TargetFile(info.size_bytes, {"sha256": info.sha256}, path, {"custom": custom})


def find(targets: Targets | None, name: str, version: str) -> TargetFile | None:
    """What `targets` say of a release, if they release it."""
    return targets.targets.get(target_path(name, version)) if targets else None


def released(drafts: Drafts, name: str, version: str) -> tuple[str, ReleaseInfo]:
    """The role that releases it, now or with its next version, and what it says.

    Raises:
        ReleaseRepositoryError: none does.
        MetadataFormatError: what it says is no release.
    """
    for role in dict.fromkeys((TARGETS, *drafts.targets, *drafts.published.targets)):
        found = find(drafts.latest_targets(role), name, version)
        if found is not None:
            return role, release_info(role, found)
    raise ReleaseRepositoryError(f"{name[:80]} {version[:80]} is not released")


def stated_floors(targets: Targets) -> dict[str, str]:
    """The security floors that `targets` state, by name."""
    return dict(targets.unrecognized_fields.get(FLOORS_FIELD, {}))


def check_floor(drafts: Drafts, role: str, info: ReleaseInfo) -> None:
    """Refuse a release that is below the floor of its name.

    Raises:
        ReleaseRepositoryError: it is.
        MetadataFormatError: the floors of a role are none.
    """
    asked = {name: drafts.latest_targets(name) for name in (TARGETS, role)}
    floors = [security_floor(name, targets, info.name) for name, targets in asked.items() if targets]
    floor = highest(info.security_floor, *floors)
    if version_key(info.version) < version_key(floor):
        raise ReleaseRepositoryError(
            f"{info.name} {info.version} is below the security floor {floor}: no device would take it",
            role=role,
        )


def raise_floor(targets: Targets, name: str, floor: str) -> None:
    """Let `targets` state `floor` for `name`, unless they state a higher one."""
    floors = stated_floors(targets)
    if version_key(floor) > version_key(floors.get(name, NO_FLOOR)):
        targets.unrecognized_fields[FLOORS_FIELD] = {**floors, name: floor}


# --- delegations --------------------------------------------------------------------------------------------


def role_for(drafts: Drafts, path: str) -> str:
    """The role in charge of a target path."""
    delegations = drafts.latest_delegations()
    teams = [role for role, _ in delegations.get_roles_for_target(path)] if delegations else []
    return teams[0] if teams else TARGETS


def delegations_of(targets: Targets) -> Delegations:
    """To whom `targets` delegate, to be changed."""
    if targets.delegations is None:
        targets.delegations = Delegations(keys={}, roles={})
    return targets.delegations


def grant(keyring: dict[str, Key], role: Role, keys: RoleKeys) -> None:
    """Give a role its keys."""
    role.keyids, role.threshold = [key.keyid for key in keys.keys], keys.threshold
    keyring.update((key.keyid, key) for key in keys.keys)


def delegate(delegations: Delegations, name: str, keys: RoleKeys, paths: list[str]) -> None:
    """Let a new role sign targets under some path patterns.

    Raises:
        ReleaseRepositoryError: there is a role of that name.
    """
    roles = delegations.roles
    if roles is None or name in roles:
        raise ReleaseRepositoryError(
            f"{name} is a role already", role=name, hint="Rotate its keys, or take its delegation back first"
        )
    # Terminating: nobody else is asked for what a team does not release.
    roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=paths)
    grant(delegations.keys, roles[name], keys)


def check_names(team: str, names: Sequence[str], delegations: Delegations) -> None:
    """Refuse names that are none, or that another team has.

    Raises:
        ReleaseRepositoryError: one of them.
    """
    taken = {
        path.split("/")[1]: role.name
        for role in (delegations.roles or {}).values()
        for path in role.paths or ()
        if path.startswith("packages/")
    }
    for name in names:
        if not _NAMES.fullmatch(name):
            raise ReleaseRepositoryError(
                f"'{name[:80]}' is no package name, nor a beginning with *", role=team
            )
        for other, owner in taken.items():
            if _overlap(name, other):
                raise ReleaseRepositoryError(f"{name} and {other} of {owner} share names", role=team)


def _overlap(one: str, other: str) -> bool:
    if one.endswith("*") and other.endswith("*"):
        return one[:-1].startswith(other[:-1]) or other[:-1].startswith(one[:-1])
    return fnmatchcase(one, other) or fnmatchcase(other, one)
