"""What is the matter with a fleet: facts in, sentences out, each with what to do. Pure.

What always holds: ``failed`` is what keeps the fleet from its work or its trust, and ``warning`` what somebody should
look at; a check says what it found also where all is well; whatever devices said of themselves is shortened.

Here are the machine, keys, releases and the broker. Left to others: devices and what waits for a person
(:mod:`edgeslm.fleet.doctor_devices`), gathering the facts (:mod:`edgeslm.fleet.doctor_facts`), and showing what was
found.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from edgeslm.schema.fleet import Record

Status = Literal["ok", "warning", "failed"]

SOON: Final = timedelta(days=1)
CERTIFICATE_SOON: Final = timedelta(days=60)
"""Less than the third of its life in which the broker's certificate is made anew by itself."""
LEAST_DISK_MB, SMALL_DISK_MB = 200, 1024
_CLOCK_SLACK: Final = timedelta(seconds=60)
_AHEAD_S: Final = 10.0
"""Devices together further ahead than this say that it is our clock that is behind."""
_ONE_AHEAD_S: Final = 60.0
NAMED: Final = 5
TEXT_CHARS: Final = 200


class Finding(Record):
    """One thing looked at.

    Attributes:
        advice: what to do, where something is to be done.
        devices: all that it is about; the sentence names but some.
    """

    name: str
    status: Status
    detail: str
    advice: str | None = None
    devices: tuple[str, ...] = ()


def is_failed(findings: Iterable[Finding]) -> bool:
    """Whether something essential is."""
    return any(finding.status == "failed" for finding in findings)


# --- the machine --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileFact:
    """A file or directory; `mode` are its permission bits, ``None`` where it is missing."""

    path: str
    mode: int | None


def check_files(root: FileFact, keys: Sequence[FileFact], store: FileFact | None) -> Finding:
    """The directory, and who may read what is secret in it.

    Args:
        root: directory of the fleet.
        keys: private keys, each for its owner alone by itself.
        store: a file that the directory keeps from others; ``None`` where the store is elsewhere.
    """
    secret = [*keys, *([] if store is None else [store])]
    missing = [one.path for one in secret if one.mode is None]
    if missing:
        return Finding(
            name="files", status="failed", detail=f"missing: {some(missing)}",
            advice="Bring them back from a backup: edgeslm fleet restore",
        )  # fmt: skip
    open_root = [root.path] if _is_open(root) else []
    readable = [one.path for one in secret if _is_open(one)]
    if open_root and readable:
        return Finding(
            name="files", status="failed", detail=f"others on this machine can read {some(readable)}",
            advice=f"chmod go= {' '.join([*open_root, *readable])}, and think of who may have read them",
        )  # fmt: skip
    # The directory keeps others from them still, but a copy of one keeps nobody.
    wide = [*open_root, *(one.path for one in keys if _is_open(one))]
    if wide:
        return Finding(
            name="files", status="warning", detail=f"not for its owner alone: {some(wide)}",
            advice=f"chmod go= {' '.join(wide)}",
        )  # fmt: skip
    return Finding(name="files", status="ok", detail=f"{root.path} is for its owner alone")


def _is_open(fact: FileFact) -> bool:
    return bool((fact.mode or 0) & 0o077)


def check_disk(free_mb: int, place: str) -> Finding:
    """Room for the store, releases and what the broker keeps."""
    detail = f"{free_mb:,} MB free at {place}"
    if free_mb < LEAST_DISK_MB:
        advice = f"At least {LEAST_DISK_MB} MB are needed: edgeslm fleet release prune, or a larger disk"
        return Finding(name="disk", status="failed", detail=detail, advice=advice)
    if free_mb < SMALL_DISK_MB:
        return Finding(name="disk", status="warning", detail=detail, advice="edgeslm fleet release prune")
    return Finding(name="disk", status="ok", detail=detail)


def check_clock(
    now: datetime, *, is_set: bool, newest: datetime | None, ahead_s: Mapping[str, float]
) -> Finding:
    """Whether this machine's clock can be right, by what is on record and by what devices say.

    Args:
        now: what it says.
        is_set: it says more than what no right clock says less than.
        newest: of what is on record.
        ahead_s: seconds that devices which reported lately were ahead of it.
    """
    said = f"it is {now:%Y-%m-%d %H:%M:%S} UTC"
    advice = "Set it, and let NTP keep it: certificates and signatures count by it"
    if not is_set:
        return Finding(name="clock", status="failed", detail=f"{said}, which cannot be", advice=advice)
    if newest is not None and newest - now > _CLOCK_SLACK:
        detail = f"{said}, but something is on record for {newest:%Y-%m-%d %H:%M:%S}"
        return Finding(name="clock", status="failed", detail=detail, advice=advice)
    median_s = statistics.median(ahead_s.values()) if len(ahead_s) >= 3 else 0.0
    if median_s > _AHEAD_S:
        detail = f"{said}; {len(ahead_s)} devices are ahead of it, by {median_s:.0f} s in the middle"
        return Finding(name="clock", status="warning", detail=detail, advice=advice)
    fast = tuple(sorted(name for name, value_s in ahead_s.items() if value_s > _ONE_AHEAD_S))
    if fast:
        return Finding(
            name="clock", status="warning", detail=f"{said}; ahead of it by more than a minute: {some(fast)}",
            advice="Look at the clocks of those devices", devices=fast,
        )  # fmt: skip
    told = f", and {len(ahead_s)} devices that reported lately do not disagree" if ahead_s else ""
    return Finding(name="clock", status="ok", detail=f"{said}{told}")


@dataclass(frozen=True)
class StoreFact:
    """The store: its address without a password, revision, and what its own check of itself finds wrong."""

    where: str
    revision: str
    damage: str | None
    devices: int


def check_store(store: StoreFact) -> Finding:
    """The store."""
    detail = f"{store.where}, revision {store.revision}, {store.devices} devices"
    if store.damage is not None:
        return Finding(
            name="store", status="failed", detail=f"{detail}: damaged: {store.damage[:TEXT_CHARS]}",
            advice="Stop edgeslm fleet serve, keep the file, and bring back a backup: edgeslm fleet restore",
        )  # fmt: skip
    return Finding(name="store", status="ok", detail=detail)


# --- keys, certificates, releases ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CertificateFact:
    """A certificate of the fleet's own."""

    name: str
    not_after: datetime


def check_certificates(found: Sequence[CertificateFact], now: datetime) -> Finding:
    """Certificates of authority, operator, broker and door."""
    over = [one for one in found if one.not_after <= now]
    soon = [one for one in found if now < one.not_after <= now + CERTIFICATE_SOON]
    advice = "edgeslm fleet serve makes those of broker and door anew when it starts; then restart the broker"
    if over:
        detail = ", ".join(f"that of the {one.name} is over since {one.not_after:%Y-%m-%d}" for one in over)
        return Finding(name="certificates", status="failed", detail=detail, advice=advice)
    first = min(found, key=lambda one: one.not_after)
    detail = f"{', '.join(one.name for one in found)}; the first to end is that of the {first.name}"
    detail += f", in {days(first.not_after - now)}"
    if soon:
        return Finding(name="certificates", status="warning", detail=detail, advice=advice)
    return Finding(name="certificates", status="ok", detail=detail)


@dataclass(frozen=True)
class RoleFact:
    """A role of the release repository.

    Attributes:
        signs_alone: a service signs with its key, without a person.
        key: whether a key of it lies on this machine, and how.
    """

    role: str
    expires_at: datetime | None
    due: bool
    signs_alone: bool
    key: Literal["here", "encrypted", "elsewhere"]


@dataclass(frozen=True)
class PendingFact:
    """Something that was changed and is not published."""

    role: str
    missing: int


def check_keys(roles: Sequence[RoleFact]) -> Finding:
    """Which keys of releases are on this machine, and which are safe from it.

    Args:
        roles: none where there is no repository.
    """
    if not roles:
        return Finding(name="keys", status="ok", detail="authority and operator are here; no releases yet")
    here = [one.role for one in roles if one.key != "elsewhere"]
    away = [one.role for one in roles if one.key == "elsewhere"]
    detail = f"here: {', '.join(['authority', 'operator', *here])}; offline: {', '.join(away) or 'none'}"
    bare = [one.role for one in roles if not one.signs_alone and one.key == "here"]
    if bare:
        return Finding(
            name="keys", status="failed",
            detail=f"{detail}; without a passphrase, though people sign with it: {some(bare)}",
            advice="Whoever gets at this machine can release what they like: rotate those keys, see docs/releases.md",
        )  # fmt: skip
    missing = [one.role for one in roles if one.signs_alone and one.key == "elsewhere"]
    if missing:
        return Finding(
            name="keys", status="warning", detail=detail,
            advice=f"Nothing can be signed here as {some(missing)}: name their directory with --keys",
        )  # fmt: skip
    kept = [one.role for one in roles if not one.signs_alone and one.key == "encrypted"]
    if kept:
        return Finding(
            name="keys", status="warning", detail=detail,
            advice=f"Move offline, and keep a copy of each elsewhere: {some(kept)}",
        )  # fmt: skip
    return Finding(name="keys", status="ok", detail=detail)


def check_releases(roles: Sequence[RoleFact], pending: Sequence[PendingFact], now: datetime) -> Finding:
    """How long what is published can be trusted, and what waits for a signature."""
    dated = sorted(
        ((one.expires_at, one) for one in roles if one.expires_at is not None), key=lambda pair: pair[0]
    )
    if not dated:
        return Finding(name="releases", status="ok", detail="no releases yet")
    over = [one for ends, one in dated if ends <= now]
    if over:
        detail = ", ".join(f"{one.role} is over since {one.expires_at:%Y-%m-%d}" for one in over)
        return Finding(
            name="releases", status="failed", detail=f"{detail}: devices take no release any more",
            advice=_renewal(over),
        )  # fmt: skip
    detail = f"the first role to end is {dated[0][1].role}, in {days(dated[0][0] - now)}"
    # A service renews what it signs when it is due, so of that only what it has let go too far is told.
    due = [one for ends, one in dated if one.due and (not one.signs_alone or ends - now < SOON / 4)]
    if due:
        return Finding(
            name="releases", status="warning", detail=f"{detail}; due: {some([one.role for one in due])}",
            advice=_renewal(due),
        )  # fmt: skip
    if pending:
        unsigned = [one.role for one in pending if one.missing]
        what = f"signatures for {some(unsigned)}" if unsigned else "publishing"
        advice = "edgeslm fleet release sign --key KEY" if unsigned else "edgeslm fleet release publish"
        detail = f"{detail}; a change waits for {what}"
        return Finding(name="releases", status="warning", detail=detail, advice=advice)
    return Finding(name="releases", status="ok", detail=detail)


def _renewal(roles: Sequence[RoleFact]) -> str:
    if all(one.signs_alone for one in roles):
        return (
            "edgeslm fleet release serve, or edgeslm fleet serve, signs them anew by itself: is it running?"
        )
    names = [one.role for one in roles if not one.signs_alone]
    return f"Sign anew with the offline key: edgeslm fleet release renew {names[0]} --key KEY"


# --- the broker ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BrokerFact:
    """The broker.

    Attributes:
        where: address and port of the operator's listener.
        error: why it cannot be reached.
        changed: its files that are otherwise than the store and this release say.
        unlisted: certificates that are revoked, and not on the list that it reads.
    """

    where: str
    error: str | None
    changed: tuple[str, ...]
    unlisted: int


def check_broker(broker: BrokerFact) -> Finding:
    """Whether it is there, and works with the files that it should have."""
    advice = "edgeslm fleet serve writes its files when it starts; then restart the broker"
    if broker.unlisted:
        return Finding(
            name="broker", status="failed",
            detail=f"{broker.where}: {broker.unlisted} revoked certificates are not on its list, and get in",
            advice=advice,
        )  # fmt: skip
    if broker.error is not None:
        return Finding(
            name="broker", status="failed", detail=broker.error[:TEXT_CHARS],
            advice="Start it, see docs/fleet.md; if it is elsewhere check fleet.yaml and the network",
        )  # fmt: skip
    if broker.changed:
        detail = f"{broker.where} answers; files that are not as they should be: {some(broker.changed)}"
        return Finding(name="broker", status="warning", detail=detail, advice=advice)
    return Finding(name="broker", status="ok", detail=f"{broker.where} answers, its files are in order")


# --- words --------------------------------------------------------------------------------------------------


def some(names: Sequence[str]) -> str:
    """The first of them, and how many there are besides."""
    shown = ", ".join(name[:TEXT_CHARS] for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def days(span: timedelta) -> str:
    """A span of time, in days or hours."""
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} h"
