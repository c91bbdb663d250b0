"""Bringing a package to the device by whichever way moves least: as a delta or whole, from near or from far.

The ways are tried in the order of the plan. A way ends when its sources do not have the file, give nothing
for a while, or the delta turns out to be of no use; the last one goes on until the deadline.

Left to others: what is to be here, and what becomes of it; and applying a delta, which is handed in, as
packages are not known on this layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.policy import Conditions, Step, check_wan, plan_delivery
from edgeslm.delivery.port import BlockSource, Cancel, Progress
from edgeslm.errors import DeliveryError, DeltaError, NoSourceError
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy, DeliveryTarget

log = logging.getLogger(__name__)

PATIENCE_S = 180.0
"""Without a block for so long a way is given up for the next; at the least rate one takes a minute."""

Rebuild = Callable[[Path, str, Path, BlobRef], None]
"""Applies a delta: its path, the sha256 of the installed base, the path of the result, and what that has to be.

Raises:
    DeltaError: it is of no use, or the base is not.
    EdgeslmError: the disk refuses.
"""


def deliver(
    target: DeliveryTarget,
    sources: Sequence[BlockSource],
    policy: DeliveryPolicy,
    fetcher: Fetcher,
    *,
    have: Collection[str],
    rebuild: Rebuild,
    conditions: Callable[[], Conditions],
    progress: Callable[[Progress], None],
    cancelled: Cancel,
) -> Path:
    """Bring the package of `target` here; afterwards nothing that helped to is left.

    Args:
        target: what to bring here.
        sources: in order of preference.
        policy: what is allowed.
        fetcher: fetches files.
        have: sha256 of the packages that are installed.
        rebuild: applies a delta.
        conditions: asked again every few seconds.
        progress: told about twice a second.
        cancelled: ends it when set.

    Returns:
        Path of the package file, whose sha256 is right.

    Raises:
        DeliveryError: it could not be brought here; subclasses tell why.
    """
    package = target.package
    blobs = [package, *(delta.blob for delta in target.deltas)]
    arrived = {blob.sha256: fetcher.arrived_bytes(blob) for blob in blobs}
    steps = plan_delivery(
        target,
        have=have,
        arrived_bytes=arrived,
        reaches={source.reach for source in sources},
        policy=policy,
        conditions=conditions(),
    )
    failure: DeliveryError = NoSourceError(
        f"there is no source for {package.sha256}", sha256=package.sha256, missing=False
    )
    for number, step in enumerate(steps, start=1):
        log.info("%s: %s of %d bytes", package.sha256, step.kind, step.moves_bytes)

        def allowed(source: BlockSource, step: Step = step) -> None:
            if source.reach == "wan":
                check_wan(policy, conditions(), step.kind, step.moves_bytes)

        try:
            path = fetcher.fetch(
                step.blob,
                [source for source in sources if source.reach in step.reaches],
                policy,
                progress,
                cancelled,
                allowed=allowed,
                patience_s=PATIENCE_S if number < len(steps) else None,
                # Beside itself a package needs room to be unpacked, and a delta room for the package as well.
                room_bytes=package.size_bytes * (1 if step.base_sha256 is None else 2),
            )
            if step.base_sha256 is not None:
                rebuild(path, step.base_sha256, fetcher.path(package), package)
        except (NoSourceError, DeltaError) as error:
            log.warning("%s", error)
            failure = error
            continue
        fetcher.forget({*arrived, *(blob.chunks_sha256 or "" for blob in blobs)} - {package.sha256})
        return fetcher.path(package)
    raise failure
