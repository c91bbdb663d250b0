"""``edgeslm fleet``: the operator's side, one file for each kind of command."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS = {
    "approve": (
        "edgeslm.cli.fleet_join:approve",
        "Let a waiting device join, or accept what is odd about one.",
    ),
    "ask": ("edgeslm.cli.fleet_ask:ask", "Ask devices a prompt, and compare their answers."),
    "assign": ("edgeslm.cli.fleet_assign:assign", "Let a device run published releases."),
    "assignments": (
        "edgeslm.cli.fleet_assign:assignments_",
        "Show what devices should run, and what they run.",
    ),
    "audit": ("edgeslm.cli.fleet_history:audit", "Show who did what."),
    "backup": ("edgeslm.cli.fleet_setup:backup", "Write the whole fleet into one file."),
    "budget": ("edgeslm.cli.fleet_budget:budget", "Say what devices may draw, and see who keeps to it."),
    "claim": ("edgeslm.cli.fleet_join:claim", "Make one-time claims for devices that are to join."),
    "claims": ("edgeslm.cli.fleet_join:claims", "List claims."),
    "diff": ("edgeslm.cli.fleet_registry:diff", "Show in what two devices differ."),
    "doctor": ("edgeslm.cli.fleet_doctor:doctor", "Check the fleet: machine, keys, broker, devices."),
    "events": ("edgeslm.cli.fleet_history:events", "Show what happened, and what happens."),
    "export": ("edgeslm.cli.fleet_registry:export", "Write tags, notes and groups into a file."),
    "group": ("edgeslm.cli.fleet_groups:group", "Name sets of devices."),
    "history": ("edgeslm.cli.fleet_history:history", "Show the life of a device."),
    "homeassistant": (
        "edgeslm.cli.fleet_homeassistant:homeassistant",
        "Let Home Assistant in at the fleet's broker.",
    ),
    "import": ("edgeslm.cli.fleet_registry:import_", "Bring in tags, notes and groups from a file."),
    "exec": ("edgeslm.cli.fleet_exec:exec_", "Ask devices to do something once."),
    "config": ("edgeslm.cli.fleet_config:config", "Set what devices run with, from afar."),
    "init": ("edgeslm.cli.fleet_setup:init", "Make a fleet: keys, store, broker configuration."),
    "list": ("edgeslm.cli.fleet_list:list_", "List the devices."),
    "logs": ("edgeslm.cli.fleet_logs:logs", "Show the latest lines of a device's log."),
    "note": ("edgeslm.cli.fleet_registry:note_", "Keep a note about a device."),
    "metrics": ("edgeslm.cli.fleet_metrics:metrics", "Show what devices drew, did and cost."),
    "pending": ("edgeslm.cli.fleet_join:pending", "List devices that wait for approval."),
    "quarantine": (
        "edgeslm.cli.fleet_quarantine:quarantine",
        "Devices whose figures are not believed.",
    ),
    "pin": ("edgeslm.cli.fleet_rollouts:pin", "Let rollouts leave devices alone."),
    "push": ("edgeslm.cli.fleet_push:push", "Bring a release to devices, wave by wave."),
    "reject": ("edgeslm.cli.fleet_join:reject", "Send a waiting device away."),
    "release": ("edgeslm.cli.fleet_release:release", "Release packages: sign, publish, serve."),
    "rename": ("edgeslm.cli.fleet_devices:rename", "Give a device another name."),
    "restore": ("edgeslm.cli.fleet_setup:restore", "Make a fleet anew from a backup."),
    "retire": ("edgeslm.cli.fleet_devices:retire", "Take devices out of use for good."),
    "revoke": ("edgeslm.cli.fleet_devices:revoke", "Refuse devices, or take a claim back."),
    "rollout": ("edgeslm.cli.fleet_rollouts:rollout", "Look at a rollout, and step in."),
    "rollouts": ("edgeslm.cli.fleet_rollouts:rollouts", "List rollouts."),
    "search": ("edgeslm.cli.fleet_registry:search", "Find a text in devices, groups, claims and events."),
    "serve": ("edgeslm.cli.fleet_setup:serve", "Answer devices: joining, renewal, presence."),
    "show": ("edgeslm.cli.fleet_devices:show", "Show all about one device."),
    "unpin": ("edgeslm.cli.fleet_rollouts:unpin", "Let rollouts bring releases to devices again."),
    "tag": ("edgeslm.cli.fleet_registry:tag", "Put tags on devices, and take them off."),
    "top": ("edgeslm.cli.fleet_top:top", "Show what devices draw and do now."),
    "watch": ("edgeslm.cli.fleet_watch:watch", "Watch devices at the broker, as things happen."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def fleet() -> None:
    """Run a fleet: who belongs to it, and what each device may do.

    A fleet is a directory. It is named by --fleet-dir or EDGESLM_FLEET_DIR; else it is the one called --fleet, or the
    only one, in ~/.local/share/edgeslm/fleets.
    """
