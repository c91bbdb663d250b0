"""``edgeslm power check``: whether this board can keep the budget, and what is left of it now."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Final

import click

from edgeslm.cli.output import print_json
from edgeslm.cli.power_common import Settings, governor_of, learned_idle_w, ledger_if_any, power_command
from edgeslm.cli.power_words import energy_text, power_text, print_table, time_text
from edgeslm.power.budget import check_budget
from edgeslm.power.governor import WindowUse
from edgeslm.power.governor_types import WorkEstimate
from edgeslm.power.ledger_reader import PromptRow

_PROMPTS: Final = 100
_LEAST_PROMPTS: Final = 5


def usual_prompt(rows: Sequence[PromptRow]) -> WorkEstimate | None:
    """What a prompt took of late; ``None`` where too few tell."""
    taken = [
        (row.net_j, row.seconds, row.note.completion_tokens or 1)
        for row in rows
        if row.net_j is not None and row.seconds is not None
    ]
    if len(taken) < _LEAST_PROMPTS:
        return None
    joules = sorted(net_j for net_j, _, _ in taken)
    token_j = statistics.median(net_j / tokens for net_j, _, tokens in taken)
    return WorkEstimate(
        mean_j=statistics.fmean(joules),
        p90_j=joules[math.ceil(0.9 * len(joules)) - 1],
        seconds=statistics.fmean(seconds for _, seconds, _ in taken),
        token_j=token_j,
        prefill_j=0.0,
        chunk_j=token_j,
    )


@click.command()
@power_command
def check(settings: Settings, as_json: bool) -> None:
    """Check the budget against this board, and show what is used and left now according to the ledger.

    Exit code 2 where the idle board alone draws what a window allows, with the arithmetic.
    """
    board, budget = settings.board, settings.config.budget
    wall_s, now_s = time.time(), time.monotonic()
    with ledger_if_any(settings) as reader:
        learned_w = learned_idle_w(reader, wall_s)
        idle_w = board.power.idle_w if learned_w is None else learned_w
        usage = governor_of(settings, idle_w, reader, now_s, wall_s).usage(now_s)
        prompt = None if reader is None else usual_prompt(reader.prompts(_PROMPTS))
        known = reader is not None
    most_w = None if board.cores is None else idle_w + board.cores * board.power.core_load_w
    warnings = check_budget(budget, idle_w, max_w=most_w, prompt=prompt)
    windows = [
        {
            "name": use.name,
            "over_s": use.over_s,
            "limit_w": use.limit_j / use.over_s,
            "limit_j": use.limit_j,
            "idle_j": idle_w * use.over_s,
            "used_j": use.used_j if known else None,
            "left_share": 1 - use.used_j / use.limit_j if known else None,
        }
        for use in usage
    ]
    if as_json:
        print_json(
            {
                "board": board.name,
                "idle_w": idle_w,
                "idle_learned": learned_w is not None,
                "most_w": most_w,
                "windows": windows,
                "warnings": list(warnings),
            }
        )
        return
    origin = "from the board's power table" if learned_w is None else "of the last day by the ledger"
    click.echo(f"{board.title} ({board.name}): idle {power_text(idle_w)} {origin}")
    if most_w is not None:
        click.echo(f"all {board.cores} cores busy: {power_text(most_w)}")
    if prompt is not None:
        click.echo(
            f"a prompt took {energy_text(prompt.mean_j)} above idle of late, nine of ten up to "
            f"{energy_text(prompt.p90_j)}"
        )
    _print_windows(settings, usage, idle_w, known=known)
    for warning in warnings:
        click.echo(f"{click.style('warning', fg='yellow')}: {warning}")
    if budget.windows:
        click.echo("this board can keep the budget" + (", with the warnings above" if warnings else ""))


def _print_windows(settings: Settings, usage: Sequence[WindowUse], idle_w: float, *, known: bool) -> None:
    if not usage:
        click.echo("the budget has no windows: nothing bounds the energy")
        return
    click.echo()
    print_table(
        ("window", ">allows", ">in", ">on average", ">idle takes", ">for work", ">used", ">left"),
        [
            (
                use.name,
                energy_text(use.limit_j),
                time_text(use.over_s),
                power_text(use.limit_j / use.over_s),
                energy_text(idle_w * use.over_s),
                energy_text(use.limit_j - idle_w * use.over_s),
                energy_text(use.used_j) if known else "-",
                f"{1 - use.used_j / use.limit_j:.0%}" if known else "-",
            )
            for use in usage
        ],
    )
    if not known:
        click.echo(f"no agent has kept a ledger in {settings.config.state_dir}: what was used is not known")
    click.echo()
