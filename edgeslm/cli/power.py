"""``edgeslm power``: what the board draws, what it may draw, and what its energy was spent on."""

from __future__ import annotations

import click

from edgeslm.cli.output import CommandGroup

_COMMANDS = {
    "bench": (
        "edgeslm.cli.power_bench:bench",
        "Measure what a model takes on this board, or compare two results.",
    ),
    "calibrate": ("edgeslm.cli.power_calibrate:calibrate", "Fit a meter to one that is known to be right."),
    "check": (
        "edgeslm.cli.power_check:check",
        "Check the budget against this board, and show what is left of it.",
    ),
    "explain": ("edgeslm.cli.power_explain:explain", "Say why a prompt waited, shrank or was refused."),
    "meters": ("edgeslm.cli.power_meters:meters", "List the meters of this board, and what they say."),
    "report": ("edgeslm.cli.power_report:report", "Show what the energy of a period was spent on."),
    "watch": ("edgeslm.cli.power_watch:watch", "Show the draw of the board as it is."),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
def power() -> None:
    """Measure, budget and account for the power of this board.

    Settings come from agent.yaml where --config or EDGESLM_CONFIG names it. Without one the board is recognised, its
    meters are looked for, and nothing restrains it. All of it can run beside the agent, and needs none.
    """
