"""The release repository: what is released, who may release it, and its publication.

Work goes in three steps, which different people may take on different machines. *Edit*: a change makes the next
version of a role, which lies pending. No key is needed. *Sign*: those who hold the role's keys add signatures, one
after the other. *Publish*: what is signed enough goes live, with a snapshot and a timestamp signed by keys of the
machine that publishes.

What always holds:

* Nothing is published that devices would refuse: the new state is first offered to the very client that runs on
  them.
* A release, once added, keeps its bytes; another package of the same name and version is refused.
* Security floors only rise by themselves: by packages that state one. They outlive the packages.
* Keys that sign what is released are never needed to keep the repository fresh.

Left to others: files (:mod:`edgeslm.fleet.release_files`), metadata in memory
(:mod:`edgeslm.fleet.release_metadata`), keys (:mod:`edgeslm.fleet.signing`), serving.

Source: TUF specification 1.0.33, sections 4 (metadata) and 6.2 (consistent snapshots).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import file_digest
from pathlib import Path

from pydantic import ValidationError
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    Metadata,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgeslm.clock import utc_now
from edgeslm.codec import describe
from edgeslm.errors import MetadataFetchError, ReleaseRepositoryError, TrustError
from edgeslm.fleet.release_drafts import Drafts, PendingRole
from edgeslm.fleet.release_files import TARGETS, RepositoryFiles, Superfluous
from edgeslm.fleet.release_metadata import (
    RoleKeys,
    drop_unused_keys,
    replace_keys,
    stamp,
)
from edgeslm.fleet.release_publication import next_state, try_out
from edgeslm.fleet.release_targets import (
    check_floor,
    check_names,
    delegate,
    delegations_of,
    described,
    find,
    grant,
    put,
    raise_floor,
    released,
    role_for,
    stated_floors,
)
from edgeslm.models.package import check_package
from edgeslm.schema.agent_release import is_agent_path
from edgeslm.schema.base import is_identifier, version_key
from edgeslm.schema.release import (
    FLOORS,
    FLOORS_FIELD,
    Lifetimes,
    ReleaseInfo,
    ReleaseTarget,
    SideFile,
    SideKind,
    target_path,
)
from edgeslm.trust.clock import Clock
from edgeslm.trust.document import ROLE_PREFIX, signing_path
from edgeslm.trust.releases import agent_info, release_info, security_floor

_DUE_SHARE = 0.25
"""A role is due when less than this share of its lifetime is left."""


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes:
        published: versions by role, of what is new.
        waiting: what is not signed enough yet.
    """

    published: Mapping[str, int]
    waiting: tuple[PendingRole, ...]


@dataclass(frozen=True)
class RoleExpiry:
    """When a published role expires.

    Attributes:
        offline: people have to sign it again; else a publication does.
        due: less than a quarter of its lifetime is left.
    """

    role: str
    version: int
    expires_at: datetime
    offline: bool
    due: bool


@dataclass(frozen=True)
class RoleKeyIds:
    """The keys of a role.

    Attributes:
        keyids: of its keys.
        threshold: how many of them have to sign.
        paths: what is delegated to it; nothing for a top-level role.
    """

    keyids: tuple[str, ...]
    threshold: int
    paths: tuple[str, ...]


class ReleaseRepository:
    """A release repository in a directory.

    Attributes:
        public: the directory to serve.
    """

    def __init__(self, directory: Path, *, clock: Clock = utc_now) -> None:
        """Open a repository.

        Raises:
            ReleaseRepositoryError: there is none, or it cannot be read.
        """
        self._files = RepositoryFiles.open(directory)
        self._clock = clock
        self.public = self._files.public

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        root: RoleKeys,
        targets: RoleKeys,
        snapshot: RoleKeys,
        timestamp: RoleKeys,
        lifetimes: Lifetimes | None = None,
        clock: Clock = utc_now,
    ) -> ReleaseRepository:
        """Make a repository; root and targets lie pending until they are signed and published.

        Args:
            directory: of the repository; made when missing.
            root: keys that say who may sign what. Offline.
            targets: keys that say what is released. Offline.
            snapshot: keys of the machine that publishes.
            timestamp: keys of the machine that publishes.
            lifetimes: how long signatures last.

        Raises:
            ReleaseRepositoryError: there is one already, or the disk refuses.
        """
        lifetimes, now = lifetimes or Lifetimes(), clock()
        first_root = Metadata(Root(consistent_snapshot=True))
        keys = {"root": root, "targets": targets, "snapshot": snapshot, "timestamp": timestamp}
        for role, granted in keys.items():
            grant(first_root.signed.keys, first_root.signed.roles[role], granted)
        first_targets = Metadata(Targets())
        stamp(first_root, now, lifetimes.root_days)
        stamp(first_targets, now, lifetimes.targets_days)
        RepositoryFiles.create(directory, lifetimes, {"root": first_root, "targets": first_targets})
        return cls(directory, clock=clock)

    # --- looking ---

    def root_bytes(self) -> bytes:
        """The newest published root: what a device is enrolled with.

        Raises:
            ReleaseRepositoryError: nothing is published yet, or the disk refuses.
        """
        with self._drafts() as drafts:
            version = drafts.published.require_root().signed.version
            return self._files.published_bytes(f"{version}.root.json")

    def releases(self) -> tuple[ReleaseTarget, ...]:
        """All published releases, by name and version.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        with self._drafts() as drafts:
            published = drafts.published.targets
        found = []
        for role, metadata in published.items():
            for target in metadata.signed.targets.values():
                if is_agent_path(target.path):
                    continue
                info = release_info(role, target)
                floor = security_floor(role, metadata.signed, info.name)
                found.append(ReleaseTarget(role=role, info=info, floor=floor))
        return tuple(sorted(found, key=lambda item: (item.info.name, version_key(item.info.version))))

    def pending(self) -> tuple[PendingRole, ...]:
        """What is on its way to enough signatures, or has them and waits for publication.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        with self._drafts() as drafts:
            return drafts.status()

    def expiries(self) -> tuple[RoleExpiry, ...]:
        """When each published role expires, the earliest first.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file is damaged.
        """
        with self._drafts() as drafts:
            published = drafts.published
        days, now = self._files.lifetimes, self._clock()
        roles: list[tuple[str, Root | Timestamp | Snapshot | Targets, int]] = []
        if published.root:
            roles.append(("root", published.root.signed, days.root_days))
        if published.timestamp:
            roles.append(("timestamp", published.timestamp.signed, days.timestamp_days))
        if published.snapshot:
            roles.append(("snapshot", published.snapshot.signed, days.snapshot_days))
        for role, metadata in published.targets.items():
            roles.append((role, metadata.signed, days.targets_days if role == TARGETS else days.team_days))
        found = [
            RoleExpiry(
                role=role,
                version=signed.version,
                expires_at=signed.expires,
                offline=role not in {"timestamp", "snapshot"},
                due=signed.expires - now < _DUE_SHARE * timedelta(days=lifetime),
            )
            for role, signed, lifetime in roles
        ]
        return tuple(sorted(found, key=lambda item: item.expires_at))

    def keyids(self) -> frozenset[str]:
        """Ids of all keys that a published role has, or a pending one will have.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            roots = [drafts.published.root, drafts.root]
            targets = [drafts.published.targets.get(TARGETS), drafts.targets.get(TARGETS)]
        found = {keyid for root in roots if root for keyid in root.signed.keys}
        delegations = [item.signed.delegations for item in targets if item]
        return frozenset(found | {keyid for item in delegations if item for keyid in item.keys})

    # --- changing what is released ---

    def add(self, package: Path) -> ReleaseInfo:
        """Release a package: its bytes are copied, and the role in charge of its name gets a new version.

        Adding the same again changes nothing.

        Args:
            package: a ``.slm`` file.

        Raises:
            PackageError: what is wrong with the package.
            ReleaseRepositoryError: another package has that name and version, it is below the security floor, or
                the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts, self._files.copied(package) as copy:
            contents = check_package(copy, shown_as=package)
            info = described(contents.manifest, contents.sha256, contents.size_bytes)
            role = role_for(drafts, target_path(info.name, info.version))
            before = find(drafts.latest_targets(role), info.name, info.version)
            if before is not None:
                known = release_info(role, before)
                if known.sha256 == info.sha256:
                    return known
                raise ReleaseRepositoryError(
                    f"{info.name} {info.version} is released with other content",
                    role=role, path=str(package), hint="A release keeps its bytes: give the new one a new version",
                )  # fmt: skip
            check_floor(drafts, role, info)
            targets = drafts.edit_targets(role)
            raise_floor(targets, info.name, info.security_floor)
            self._files.place(copy, info.file_path)
            put(targets, info)
            drafts.save(role)
            return info

    def attach(
        self, name: str, version: str, *, chunks: Path | None = None, deltas: Mapping[str, Path] | None = None
    ) -> ReleaseInfo:
        """Add to a release what helps to deliver it.

        Args:
            name: of the release.
            version: of the release.
            chunks: its chunk map.
            deltas: a delta by the sha256 of the package that it starts from.

        Raises:
            ReleaseRepositoryError: there is no such release, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            role, info = released(drafts, name, version)
            fields = dict(info)
            if chunks is not None:
                fields["chunks"] = self._keep_side(info, chunks, "slm.chunks")
            new = {base: self._keep_side(info, delta, "delta") for base, delta in (deltas or {}).items()}
            fields["deltas"] = {**info.deltas, **new}
            try:
                changed = ReleaseInfo.model_validate(fields)
            except ValidationError as error:
                raise ReleaseRepositoryError(f"{name} {version}: {describe(error)}", role=role) from error
            if changed != info:
                put(drafts.edit_targets(role), changed)
                drafts.save(role)
            return changed

    def withdraw(self, name: str, version: str) -> None:
        """Take a release back: devices that do not have it yet will not get it. Its security floor stays.

        Raises:
            ReleaseRepositoryError: there is no such release, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            role, _ = released(drafts, name, version)
            del drafts.edit_targets(role).targets[target_path(name, version)]
            drafts.save(role)

    def set_floor(self, name: str, version: str) -> None:
        """Call no version of `name` below `version` safe; it may also be lower than the floor so far.

        Raises:
            ReleaseRepositoryError: `name` or `version` cannot be, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        try:
            FLOORS.validate_python({name: version})
        except ValidationError as error:
            raise ReleaseRepositoryError(f"no security floor: {describe(error)}") from error
        with self._drafts() as drafts:
            role = role_for(drafts, target_path(name, version))
            for stating in dict.fromkeys((role, TARGETS)):
                targets = drafts.latest_targets(stating)
                # The targets may state one as well, from before the name was a team's.
                if stating == role or (targets and name in stated_floors(targets)):
                    edited = drafts.edit_targets(stating)
                    edited.unrecognized_fields[FLOORS_FIELD] = {**stated_floors(edited), name: version}
                    drafts.save(stating)

    # --- changing who may sign ---

    def delegate(self, team: str, keys: RoleKeys, names: Sequence[str]) -> None:
        """Let a team release packages of some names, and no others.

        The team's own first metadata lies pending as well. Until it is published, its names have no releases.

        Args:
            team: a new role.
            keys: of the team.
            names: package names, or beginnings of such with a ``*``; no two teams share one.

        Raises:
            ReleaseRepositoryError: `team` or `names` cannot be, or are another team's; or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        if not is_identifier(team) or team in TOP_LEVEL_ROLE_NAMES or team.startswith(ROLE_PREFIX):
            raise ReleaseRepositoryError(f"'{team[:80]}' cannot be the name of a team", role=team)
        with self._drafts() as drafts:
            targets = drafts.edit_targets()
            delegations = delegations_of(targets)
            check_names(team, names, delegations)
            delegate(delegations, team, keys, [f"packages/{name}/*/*" for name in names])
            drafts.save(TARGETS)
            drafts.edit_targets(team)
            drafts.save(team)

    def delegate_assignments(self, fleet: str, keys: RoleKeys) -> None:
        """Let some keys, and no others, sign assignments to the devices of a fleet.

        Delegating the same again changes nothing.

        Raises:
            ReleaseRepositoryError: `fleet` cannot be, or others sign for it already; or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        role = f"{ROLE_PREFIX}{fleet}"
        if not is_identifier(role):
            raise ReleaseRepositoryError(f"'{fleet[:80]}' cannot be the name of a fleet here", role=role)
        with self._drafts() as drafts:
            delegations = drafts.latest_delegations()
            before = (delegations.roles or {}).get(role) if delegations else None
            keyids = [key.keyid for key in keys.keys]
            if before is not None and (before.keyids, before.threshold) == (keyids, keys.threshold):
                return
            delegate(delegations_of(drafts.edit_targets()), role, keys, [signing_path(fleet, "*")])
            drafts.save(TARGETS)

    def undelegate(self, role: str) -> None:
        """Take from a team, or from a fleet's ``assignments-...`` role, what was delegated to it.

        What a team released is gone with it; its security floors stay.

        Raises:
            ReleaseRepositoryError: nothing was delegated to it, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            targets = drafts.edit_targets()
            delegations = delegations_of(targets)
            roles = delegations.roles or {}
            if roles.pop(role, None) is None:
                raise ReleaseRepositoryError(f"nothing is delegated to {role[:80]}", role=role)
            drop_unused_keys(delegations.keys, roles.values())
            team = drafts.latest_targets(role)
            for name, floor in stated_floors(team).items() if team else ():
                raise_floor(targets, name, floor)
            drafts.save(TARGETS)
            drafts.drop(role)

    def rotate(
        self, role: str, *, add: Sequence[Key] = (), remove: Sequence[str] = (), threshold: int | None = None
    ) -> None:
        """Change the keys of any role. What the role itself has signed lies pending to be signed again.

        Args:
            role: a top-level role, a team, or a fleet's ``assignments-...`` role.
            add: new keys.
            remove: ids of keys to revoke, or beginnings that name one.
            threshold: how many have to sign; as before if ``None``.

        Raises:
            ReleaseRepositoryError: no such role or key, too few keys would be left, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            top = role in TOP_LEVEL_ROLE_NAMES
            delegator = drafts.edit_root() if top else delegations_of(drafts.edit_targets())
            roles: Mapping[str, Role] = delegator.roles or {}
            if role not in roles:
                raise ReleaseRepositoryError(f"there is no role {role[:80]}", role=role)
            replace_keys(delegator.keys, roles[role], add=add, remove=remove, threshold=threshold)
            drop_unused_keys(delegator.keys, roles.values())
            drafts.save("root" if top else TARGETS)
            if drafts.latest_targets(role) is not None:
                drafts.edit_targets(role)
                drafts.save(role)

    def renew(self, role: str) -> None:
        """Let a role that is signed offline say the same again, for another lifetime.

        Raises:
            ReleaseRepositoryError: no such role has signed anything, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            if role == "root":
                drafts.edit_root()
            elif drafts.latest_targets(role) is not None:
                drafts.edit_targets(role)
            else:
                raise ReleaseRepositoryError(f"{role[:80]} has signed nothing", role=role)
            drafts.save(role)

    # --- signing and publishing ---

    def sign_pending(self, signers: Sequence[Signer]) -> tuple[PendingRole, ...]:
        """Let keys sign whatever they may of what is pending; returns how far it all is.

        Raises:
            SigningKeyError: one of them may sign nothing of it.
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            drafts.sign(signers)
            return drafts.status()

    def collect(self, role: str, path: Path) -> tuple[PendingRole, ...]:
        """Take over the signatures in a copy of a pending file that was signed elsewhere.

        Args:
            role: whose version to come it is.
            path: the copy.

        Raises:
            ReleaseRepositoryError: it is not what is pending, or cannot be read.
            MetadataError: it is not metadata.
        """
        with self._drafts() as drafts:
            drafts.collect(role, path)
            return drafts.status()

    def discard(self, role: str) -> None:
        """Give up the version to come of a role.

        Raises:
            ReleaseRepositoryError: the first root or targets, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            if role in {"root", TARGETS} and not drafts.published.version(role):
                raise ReleaseRepositoryError(f"there is no other {role} yet", role=role)
            drafts.drop(role)

    def publish(self, signers: Sequence[Signer]) -> Publication:
        """Let everything that is signed enough go live.

        Args:
            signers: keys of snapshot and timestamp.

        Raises:
            ReleaseRepositoryError: devices would refuse the new state, or the disk refuses. Nothing has changed.
            SigningKeyError: `signers` are not the keys of snapshot and timestamp.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            return self._publish(drafts, drafts.ready_root(), drafts.ready_targets(), signers)

    def refresh(self, signers: Sequence[Signer]) -> Publication:
        """Sign snapshot and timestamp anew, so that they do not expire; nothing else changes.

        Args:
            signers: keys of snapshot and timestamp.

        Raises:
            ReleaseRepositoryError: devices would refuse the new state, or the disk refuses. Nothing has changed.
            SigningKeyError: `signers` are not the keys of snapshot and timestamp.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            return self._publish(drafts, None, {}, signers)

    def superfluous(self) -> tuple[Superfluous, ...]:
        """Files that neither the published state nor what is pending names.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            return self._superfluous(drafts)

    def prune(self) -> tuple[str, ...]:
        """Remove what is :meth:`superfluous`; returns the paths.

        A device that is just fetching one of them has to begin again.

        Raises:
            ReleaseRepositoryError: the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            gone = tuple(file.path for file in self._superfluous(drafts))
            self._files.remove(gone)
            return gone

    def role_keys(self) -> dict[str, RoleKeyIds]:
        """The keys of every published role, and of those to which the targets delegate.

        Raises:
            ReleaseRepositoryError: nothing is published yet, or the disk refuses.
            MetadataError: a file of the repository is damaged.
        """
        with self._drafts() as drafts:
            roles: dict[str, Role] = dict(drafts.published.require_root().signed.roles)
            targets = drafts.published.targets.get(TARGETS)
            delegations = targets.signed.delegations if targets is not None else None
            roles |= (delegations.roles or {}) if delegations is not None else {}
            return {
                name: RoleKeyIds(
                    tuple(role.keyids), role.threshold, tuple(getattr(role, "paths", None) or ())
                )
                for name, role in roles.items()
            }

    # --- a publication ---

    def _superfluous(self, drafts: Drafts) -> tuple[Superfluous, ...]:
        published = drafts.published
        metadata = {f"{item.signed.version}.{role}.json" for role, item in published.targets.items()}
        if published.snapshot:
            metadata.add(f"{published.snapshot.signed.version}.snapshot.json")
        files = {
            path
            for role, item in [*published.targets.items(), *drafts.targets.items()]
            for target in item.signed.targets.values()
            for path in _file_paths(role, target)
        }
        return self._files.others(metadata, files)

    def _publish(
        self,
        drafts: Drafts,
        root: Metadata[Root] | None,
        targets: Mapping[str, Metadata[Targets]],
        signers: Sequence[Signer],
    ) -> Publication:
        published = drafts.published
        files = next_state(
            published, root, targets, signers, lifetimes=self._files.lifetimes, now=self._clock()
        )
        if published.root:
            trusted = self._files.published_bytes(f"{published.version('root')}.root.json")
        else:
            trusted = files["1.root.json"]
        try:
            added = [
                (role, target)
                for role, metadata in targets.items()
                for target in metadata.signed.targets.values()
            ]
            packages = [
                release_info(role, target) for role, target in added if not is_agent_path(target.path)
            ]
            agents = [agent_info(target) for _, target in added if is_agent_path(target.path)]
            try_out(trusted, self.public, files, packages, agents, clock=self._clock)
        except (TrustError, MetadataFetchError) as error:
            waiting = [f"{item.role} {item.version}" for item in drafts.status() if item.missing]
            raise ReleaseRepositoryError(
                f"devices would refuse this state: {error.message}",
                role=error.role if isinstance(error, TrustError) else None,
                hint=f"Still to be signed: {', '.join(waiting)}" if waiting else error.hint,
            ) from error
        self._files.publish(files)
        drafts.drop(*(["root"] if root else []), *targets)
        versions = {role: metadata.signed.version for role, metadata in targets.items()}
        if root:
            versions["root"] = root.signed.version
        return Publication(published=versions, waiting=drafts.status())

    def _keep_side(self, info: ReleaseInfo, source: Path, kind: SideKind) -> SideFile:
        with self._files.copied(source) as copy:
            with copy.open("rb") as stream:
                side = SideFile(sha256=file_digest(stream, "sha256").hexdigest(), size_bytes=stream.tell())
            self._files.place(copy, info.side_path(side, kind))
            return side

    @contextmanager
    def _drafts(self) -> Iterator[Drafts]:
        with self._files.locked():
            yield Drafts(self._files, self._clock())


def _file_paths(role: str, target: TargetFile) -> tuple[str, ...]:
    """Where all files of a release lie, be it of a package or of the agent."""
    return agent_info(target).paths if is_agent_path(target.path) else release_info(role, target).paths
