"""Whether this device can run a release, and how it can be tried here. Pure.

A release is held against the device twice: by what its signer says before a byte is fetched, and by the manifest that
came with the bytes.
"""

from __future__ import annotations

from edgeslm.agent.update.ports import DeviceFacts
from edgeslm.errors import UpdateError
from edgeslm.schema.base import version_key
from edgeslm.schema.package import Manifest
from edgeslm.schema.release import ReleaseRequirements, ReleaseTarget
from edgeslm.schema.update import TrialMode

PROCESS_MB = 32
"""Private memory of a trial before it has loaded anything: the interpreter and its libraries."""
_STACK_MB = 8
_SPARE_BYTES = 32 * 2**20
_COPIES = 3
"""Of the package's size: the file, what is unpacked from it, and the runtime's packed weights."""


def check_device(requires: ReleaseRequirements, facts: DeviceFacts) -> None:
    """Refuse a release that cannot run on this device.

    Raises:
        UpdateError: ``incompatible``: what the device lacks.
    """
    if version_key(facts.agent) < version_key(requires.agent):
        raise _incompatible(f"it needs edgeslm {requires.agent}, not {facts.agent}")
    missing = sorted(set(requires.cpu_features) - facts.cpu_features)
    if missing:
        raise _incompatible(f"it needs a processor with {', '.join(missing)}")
    if not set(requires.runtimes) & set(facts.runtimes):
        have = ", ".join(facts.runtimes) or "none"
        raise _incompatible(f"it needs the runtime {' or '.join(requires.runtimes)}, there is {have}")
    if facts.ram_mb and requires.ram_mb > facts.ram_mb:
        raise _incompatible(f"it needs {requires.ram_mb} MB of memory, the board has {facts.ram_mb} MB")


def check_room(size_bytes: int, free_bytes: int) -> None:
    """Refuse to fetch a package that would fill the disk.

    Raises:
        UpdateError: ``no_room``.
    """
    needed_bytes = _COPIES * size_bytes + _SPARE_BYTES
    if needed_bytes > free_bytes:
        raise UpdateError(
            f"the disk needs {needed_bytes / 2**20:.0f} MiB free, {free_bytes / 2**20:.0f} MiB are",
            cause="no_room",
            hint="Remove files that are no longer needed",
        )


def check_manifest(manifest: Manifest, target: ReleaseTarget, facts: DeviceFacts) -> None:
    """Refuse a package that is not what its release says, or cannot run on this device.

    Raises:
        UpdateError: ``bad_package``, or as :func:`check_device`.
    """
    said = (target.info.name, target.info.version, target.info.task)
    found = (manifest.name, manifest.version, manifest.task)
    if said != found:
        raise UpdateError(f"released as {' '.join(said)}, it is {' '.join(found)}", cause="bad_package")
    check_device(requirements_of(manifest), facts)


def requirements_of(manifest: Manifest) -> ReleaseRequirements:
    """What a package needs, in the words of a release."""
    return ReleaseRequirements(
        ram_mb=manifest.requires.ram_mb,
        cpu_features=manifest.requires.cpu_features,
        agent=manifest.requires.agent,
        runtimes=tuple(sorted({runtime for graph in manifest.graphs for runtime in graph.runtimes})),
    )


def choose_mode(new_mb: int, old_mb: int | None, available_mb: int | None, spare_mb: int) -> TrialMode:
    """How to try a release that needs `new_mb`.

    Beside: candidate and running release each in a process of its own, while the agent serves. Swap: in the agent
    itself, in place of the running release, whose memory it gets.

    Args:
        new_mb: memory that the candidate needs.
        old_mb: memory that the running release needs; ``None`` where nothing runs under the name.
        available_mb: memory that can be had; ``None`` where it is not known.
        spare_mb: memory to leave alone.

    Raises:
        UpdateError: ``no_memory``: not even in its place.
    """
    reference_mb = 0 if old_mb is None else PROCESS_MB + old_mb
    if available_mb is None or PROCESS_MB + new_mb + reference_mb + spare_mb <= available_mb:
        return "beside"
    if new_mb + spare_mb <= available_mb + (old_mb or 0):
        return "swap"
    raise UpdateError(
        f"it needs {new_mb} MB of memory, {available_mb} MB can be had and {old_mb or 0} MB come back",
        cause="no_memory",
    )


def allowance_mb(ram_mb: int, threads: int) -> int:
    """Private memory that a candidate may take in a trial: half as much again as it says, and stacks."""
    return ram_mb * 3 // 2 + _STACK_MB * (threads + 1)


def _incompatible(reason: str) -> UpdateError:
    return UpdateError(f"this device cannot run it: {reason}", cause="incompatible")
