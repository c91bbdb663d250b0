"""What devices are and run right now, by their own words at the broker, and what a change would move to them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeslm.cli.fleet_common import Fleet, note
from edgeslm.cli.fleet_release_common import open_repository
from edgeslm.clock import utc_now
from edgeslm.schema.rollout import RolloutView

if TYPE_CHECKING:
    from edgeslm.fleet.rollout.preflight import Facts
    from edgeslm.schema.fleet import DeviceRecord
    from edgeslm.schema.message import Info


def survey(fleet: Fleet, chosen: Sequence[DeviceRecord]) -> list[Facts]:
    """What the broker and the store know of devices; what they report is written down.

    Raises:
        LinkError: the broker cannot be reached.
    """
    from sqlalchemy import select as rows_of  # noqa: PLC0415

    from edgeslm.fleet.assignments import Visit, last_reported, view_device  # noqa: PLC0415
    from edgeslm.fleet.reports import BATCH, take_reports  # noqa: PLC0415
    from edgeslm.fleet.rollout.preflight import Facts  # noqa: PLC0415
    from edgeslm.fleet.store.models import DeviceRow  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.topics import DeviceTopic, fleet_filter, parse  # noqa: PLC0415

    name = fleet.directory.name
    filters = [fleet_filter(name, channel) for channel in ("info", "reported", "availability")]
    said: dict[str, dict[str, bytes]] = {"info": {}, "reported": {}, "availability": {}}
    wanted = {one.name for one in chosen}
    client = f"edgeslm-push-{secrets.token_hex(6)}"
    with Visit(fleet.directory.operator_config(), client, filters=filters) as visit:
        for topic, payload in visit.retained().items():
            parsed = parse(topic)
            if isinstance(parsed, DeviceTopic) and parsed.device in wanted:
                said[parsed.channel][parsed.device] = payload
    reports = list(said["reported"].items())
    for first in range(0, len(reports), BATCH):
        take_reports(fleet.store, reports[first : first + BATCH], utc_now())
    boards = load_boards()
    facts = []
    with fleet.store.read() as session:
        rows = {row.name: row for row in session.scalars(rows_of(DeviceRow)) if row.name in wanted}
        for one in chosen:
            row, info = rows[one.name], _info(one.name, said["info"].get(one.name))
            facts.append(
                Facts(
                    view_device(row, info, last_reported(session, row), boards),
                    board=info.board if info is not None else row.board,
                    has_meter=info is not None and info.meter == "measured",
                    is_online=_is_online(said["availability"].get(one.name)),
                )
            )
    return facts


def moves(fleet: Fleet, view: RolloutView, devices: Sequence[str]) -> dict[str, int | None]:
    """Bytes that bringing the release of a rollout to devices would move, by name; ``None`` where they cannot take it.

    Raises:
        LinkError: the broker cannot be reached.
    """
    from edgeslm.errors import DowngradeError, SecurityFloorError, UpdateError  # noqa: PLC0415
    from edgeslm.fleet.assignments import plan_step  # noqa: PLC0415
    from edgeslm.fleet.selection import select  # noqa: PLC0415

    known = {target.info.sha256: target for target in open_repository(fleet).releases()}
    target = known.get(view.sha256)
    found: dict[str, int | None] = dict.fromkeys(devices)
    if target is None or not devices:
        return found
    with fleet.store.read() as session:
        chosen = [one for one in select(session) if one.name in found]
    for one in survey(fleet, chosen):
        try:
            step = plan_step(target, one.view, allow_downgrade=view.plan.allow_downgrade, force=True)
        except (UpdateError, SecurityFloorError, DowngradeError):
            continue
        found[one.view.name] = step.moves_bytes
    return found


def _info(device: str, payload: bytes | None) -> Info | None:
    from edgeslm import codec  # noqa: PLC0415
    from edgeslm.errors import CodecError  # noqa: PLC0415
    from edgeslm.schema.message import MAX_BODY_BYTES, Info  # noqa: PLC0415

    if payload is None:
        return None
    try:
        return codec.decode(Info, payload, max_bytes=MAX_BODY_BYTES)
    except CodecError as error:
        note(f"what {device} says of itself cannot be read: {error}")
        return None


def _is_online(payload: bytes | None) -> bool:
    from edgeslm import codec  # noqa: PLC0415
    from edgeslm.errors import CodecError  # noqa: PLC0415
    from edgeslm.schema.message import Availability  # noqa: PLC0415

    try:
        return payload is not None and codec.decode(Availability, payload, max_bytes=1024).state == "online"
    except CodecError:
        return False
