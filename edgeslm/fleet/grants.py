"""Who may do more at the broker than its own topics: the settings' grants, joined with the devices that they name.

Left to others: what a grant may hold (:class:`edgeslm.schema.fleet.Grant`), and how it stands in the access list
(:mod:`edgeslm.fleet.broker_files`).
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeslm import topics
from edgeslm.fleet.broker_files import Granted
from edgeslm.fleet.store.models import DeviceRow, TagRow
from edgeslm.schema.fleet import FleetConfig


def granted(session: Session, config: FleetConfig) -> tuple[Granted, ...]:
    """The grants of a fleet with the users that each is for, now."""
    found = []
    for grant in config.grants:
        if grant.tag is not None:
            tagged = select(DeviceRow.name).join(TagRow).where(TagRow.tag == grant.tag)
            devices = [*session.scalars(tagged.order_by(DeviceRow.name))]
        elif grant.device is not None:
            devices = [grant.device]
        else:
            found.append(Granted(None, topics.Access(grant.read, grant.write)))
            continue
        users = tuple(topics.device_user(config.name, device) for device in devices)
        found.append(Granted(users, topics.Access(grant.read, grant.write)))
    return tuple(found)
