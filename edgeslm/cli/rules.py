"""``edgeslm rules``: rules on the device, from checking a file to reading what they did."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS = {
    "check": ("edgeslm.cli.rules_try:check", "Check files of rules."),
    "replay": ("edgeslm.cli.rules_try:replay", "Run rules over a recorded log; the same result each time."),
    "run": ("edgeslm.cli.rules_run:run", "Run rules against a broker, without an agent."),
    "status": ("edgeslm.cli.rules_watch:status", "Show how the rules of this device are."),
    "test": ("edgeslm.cli.rules_try:test", "Try rules with messages of your own; nothing is published."),
    "trace": ("edgeslm.cli.rules_watch:trace", "Show what the rules of this device did, and why."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def rules() -> None:
    """Check, try, watch and replay rules: readings become prompts, answers become actions."""
