"""``edgeslm fleet doctor``: what is the matter with a fleet, each with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import Fleet, fleet_options, naming_the_extra, open_fleet
from edgeslm.cli.fleet_metrics import opened_metrics
from edgeslm.cli.fleet_release_common import keys_of, keys_option
from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.clock import clock_is_set, utc_now
from edgeslm.errors import EdgeslmError

if TYPE_CHECKING:
    from edgeslm.fleet.doctor import Finding
    from edgeslm.fleet.store.database import Store
    from edgeslm.schema.fleet import DeviceFacts
    from edgeslm.schema.message import DeviceState

_MARKS = {"ok": ("ok", "green"), "warning": ("--", "yellow"), "failed": ("!!", "red")}


@click.command()
@fleet_options
@keys_option
@json_option
@reporting_errors
def doctor(fleet_dir: Path | None, fleet_name: str | None, keys_dir: Path | None, as_json: bool) -> None:
    """Check what a fleet needs to do its work, and say what is missing and what waits for somebody.

    Nothing is changed. Exit code 1 if something essential is missing.
    """
    fleet = open_fleet(fleet_dir, fleet_name)
    with naming_the_extra():
        from edgeslm.fleet.doctor import is_failed  # noqa: PLC0415

    found = []
    for finding in findings(fleet, keys_of(fleet, keys_dir), utc_now()):
        found.append(finding)
        if not as_json:
            _print(finding)
    failed = is_failed(found)
    if as_json:
        rows = [finding.model_dump(mode="json", exclude_none=True) for finding in found]
        print_json({"ok": not failed, "findings": rows})
    if failed:
        sys.exit(1)


def _print(finding: Finding) -> None:
    text, color = _MARKS[finding.status]
    click.echo(f"{click.style(text, fg=color)}  {finding.name:12} {printable(finding.detail)}")
    if finding.advice and finding.status != "ok":
        click.echo(f"{'':17}{printable(finding.advice)}")


def findings(fleet: Fleet, keys: Path, now: datetime) -> Iterator[Finding]:
    """What is found, as it is; what cannot be looked at is a finding of its own."""
    from edgeslm.fleet import doctor as judge  # noqa: PLC0415
    from edgeslm.fleet import doctor_facts as facts  # noqa: PLC0415

    directory = fleet.directory
    yield from _guarded("files", lambda: [judge.check_files(*facts.file_facts(directory))])
    yield from _guarded("disk", lambda: [judge.check_disk(facts.free_mb(directory), str(directory.root))])
    yield from _guarded(
        "certificates", lambda: [judge.check_certificates(facts.certificate_facts(directory), now)]
    )

    def releases() -> Iterator[Finding]:
        roles, pending = facts.release_facts(directory, keys)
        yield judge.check_keys(roles)
        yield judge.check_releases(roles, pending, now)

    yield from _guarded("releases", releases)
    opened: list[Store] = []

    def store() -> list[Finding]:
        facts.need_store(directory)
        checked = judge.check_store(facts.store_fact(fleet.store, directory))
        opened.append(fleet.store)
        return [checked]

    yield from _guarded("store", store)
    if opened:
        yield from _of_the_store(fleet, opened[0], now)


def _of_the_store(fleet: Fleet, store: Store, now: datetime) -> Iterator[Finding]:
    """What is found with the help of the store."""
    from edgeslm.fleet import doctor as judge  # noqa: PLC0415
    from edgeslm.fleet import doctor_devices as devices_judge  # noqa: PLC0415
    from edgeslm.fleet import doctor_facts as facts  # noqa: PLC0415
    from edgeslm.fleet.enrolment import list_pending  # noqa: PLC0415
    from edgeslm.fleet.selection import select_facts  # noqa: PLC0415

    devices: list[DeviceFacts] = []
    presence: dict[str, DeviceState] | None = None

    def clock() -> list[Finding]:
        with store.read() as session:
            newest = facts.newest_record(session)
        ahead_s = _ahead(fleet, store, now)
        is_set = clock_is_set(now.timestamp())
        return [judge.check_clock(now, is_set=is_set, newest=newest, ahead_s=ahead_s)]

    def broker() -> list[Finding]:
        nonlocal presence
        fact, presence = facts.broker_fact(fleet.directory, store, now)
        return [judge.check_broker(fact)]

    def of_devices() -> Iterator[Finding]:
        with store.read() as session:
            devices.extend(select_facts(session, now=now))
        yield from devices_judge.check_presence(devices, presence, now)
        yield devices_judge.check_device_certificates(devices, fleet.directory.config.certificate_days, now)
        yield devices_judge.check_findings(devices)
        yield devices_judge.check_agents(devices)

    def assignments() -> list[Finding]:
        online = {
            one.name
            for one in devices
            if (one.presence if presence is None else presence.get(one.name)) == "online"
        }
        with store.read() as session:
            assigned = facts.assignment_facts(session)
        return [devices_judge.check_assignments(assigned, online, now)]

    def joining() -> list[Finding]:
        with store.read() as session:
            return [devices_judge.check_pending(list_pending(session), now)]

    yield from _guarded("clock", clock)
    yield from _guarded("broker", broker)
    yield from _guarded("devices", of_devices)
    yield from _guarded("assignments", assignments)
    yield from _guarded("joining", joining)
    yield from _guarded("rollouts", lambda: _rollouts(store, now))


def _rollouts(store: Store, now: datetime) -> list[Finding]:
    from edgeslm.fleet.doctor_devices import check_rollouts  # noqa: PLC0415
    from edgeslm.fleet.rollout.controller import LEASE  # noqa: PLC0415
    from edgeslm.fleet.rollout.lease import holder_of  # noqa: PLC0415
    from edgeslm.fleet.rollout.views import list_rollouts  # noqa: PLC0415

    with store.read() as session:
        going = list_rollouts(session, only_going=True)
        holder = holder_of(session, LEASE, now)
    return [check_rollouts(going, is_carried_out=holder is not None)]


def _ahead(fleet: Fleet, store: Store, now: datetime) -> dict[str, float]:
    """How far devices are ahead of this machine; nothing where no figures are collected."""
    from sqlalchemy import select  # noqa: PLC0415

    from edgeslm.fleet.doctor_facts import ahead_of_us, has_metrics  # noqa: PLC0415
    from edgeslm.fleet.store.models import DeviceRow  # noqa: PLC0415

    if not has_metrics(fleet.directory):
        return {}
    with store.read() as session:
        rows = session.execute(select(DeviceRow.id, DeviceRow.name).where(DeviceRow.standing == "active"))
        names = {row[0]: row[1] for row in rows}
    with opened_metrics(fleet) as metrics:
        return ahead_of_us(metrics, names, now)


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    from edgeslm.fleet.doctor import Finding  # noqa: PLC0415

    try:
        yield from check()
    except EdgeslmError as error:
        yield Finding(name=name, status="failed", detail=error.message, advice=error.hint)
