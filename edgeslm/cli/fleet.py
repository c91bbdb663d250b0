"""``edgeslm fleet``: the operator's side, one file for each kind of command."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS = {
    "approve": (
        "edgeslm.cli.fleet_join:approve",
        "Let a waiting device join, or accept what is odd about one.",
    ),
    "assign": ("edgeslm.cli.fleet_assign:assign", "Let a device run published releases."),
    "assignments": (
        "edgeslm.cli.fleet_assign:assignments_",
        "Show what devices should run, and what they run.",
    ),
    "audit": ("edgeslm.cli.fleet_devices:audit", "Show who did what."),
    "backup": ("edgeslm.cli.fleet_setup:backup", "Write the whole fleet into one file."),
    "claim": ("edgeslm.cli.fleet_join:claim", "Make one-time claims for devices that are to join."),
    "claims": ("edgeslm.cli.fleet_join:claims", "List claims."),
    "init": ("edgeslm.cli.fleet_setup:init", "Make a fleet: keys, store, broker configuration."),
    "list": ("edgeslm.cli.fleet_devices:list_", "List the devices."),
    "pending": ("edgeslm.cli.fleet_join:pending", "List devices that wait for approval."),
    "reject": ("edgeslm.cli.fleet_join:reject", "Send a waiting device away."),
    "release": ("edgeslm.cli.fleet_release:release", "Release packages: sign, publish, serve."),
    "rename": ("edgeslm.cli.fleet_devices:rename", "Give a device another name."),
    "restore": ("edgeslm.cli.fleet_setup:restore", "Make a fleet anew from a backup."),
    "retire": ("edgeslm.cli.fleet_devices:retire", "Take devices out of use for good."),
    "revoke": ("edgeslm.cli.fleet_devices:revoke", "Refuse devices, or take a claim back."),
    "serve": ("edgeslm.cli.fleet_setup:serve", "Answer devices: joining, renewal, presence."),
    "show": ("edgeslm.cli.fleet_devices:show", "Show all about one device."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def fleet() -> None:
    """Run a fleet: who belongs to it, and what each device may do.

    A fleet is a directory. It is named by --fleet-dir or EDGESLM_FLEET_DIR; else it is the one called --fleet, or the
    only one, in ~/.local/share/edgeslm/fleets.
    """
