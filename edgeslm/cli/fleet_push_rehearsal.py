"""``edgeslm fleet push --rehearse``: the same rollout, to simulated devices that are like the real ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm.cli.fleet_common import Fleet, note
from edgeslm.cli.fleet_release_common import keys_of
from edgeslm.cli.fleet_rollout_common import closing_words, exit_code, print_rollout, shown_live
from edgeslm.cli.output import print_json, stopped_by_signals
from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.rollout import RolloutView
from edgeslm.schema.sim_fleet import ReleaseEffect

if TYPE_CHECKING:
    from edgeslm.fleet.rollout.preflight import Facts, Preflight
    from edgeslm.sim.rehearsal import Stage

_SUPPOSITION = re.compile(r"(time|energy|memory|answers|crashes|crashes-later)=([+-]?\d{1,3}(?:\.\d{1,3})?)%")
_MANY = 200
"""Devices from which on they connect without TLS, which costs them most of their memory."""


def parse_effects(release: str, texts: Sequence[str]) -> list[ReleaseEffect]:
    """What a release is supposed to do to devices: ``time=+10% energy=5%``, or for one board ``pi-3b: time=10%``.

    Raises:
        UsageError: a text is none.
    """
    effects = []
    for text in texts:
        board, separator, rest = text.rpartition(":")
        fields: dict[str, Any] = {"release": release, "boards": (board.strip(),) if separator else ()}
        for part in rest.split():
            match = _SUPPOSITION.fullmatch(part)
            if match is None:
                raise UsageError(
                    f"--suppose: '{part[:40]}' is nothing to suppose",
                    hint="Write time=+10%, energy=5%, answers=3%, memory=10%, crashes=50%, with 'BOARD:' before it",
                )
            fields[match[1].replace("-", "_")] = float(match[2]) / 100
        try:
            effects.append(ReleaseEffect.model_validate(fields))
        except ValidationError as error:
            raise UsageError(f"--suppose: {describe(error)}") from error
    return effects


def rehearse_push(
    fleet: Fleet,
    keys_dir: Path | None,
    checked: Preflight,
    facts: Sequence[Facts],
    effects: Sequence[ReleaseEffect],
    *,
    seed: int,
    as_json: bool,
) -> None:
    """Rehearse a rollout, and end with the exit code that it would end with.

    Raises:
        ConfigError: a device runs nothing that is known.
        LinkError: no broker could be started for it.
        SigningKeyError: the key that signs assignments cannot be opened.
    """
    from edgeslm.fleet.release_setup import assignment_signer  # noqa: PLC0415
    from edgeslm.fleet.rollout.assigner import Assigner  # noqa: PLC0415
    from edgeslm.fleet.rollout.rehearsal import carry_out  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.sim.rehearsal import Copy, rehearse  # noqa: PLC0415

    signer = assignment_signer(keys_of(fleet, keys_dir))
    taking_part = {one.device for one in checked.devices}
    copies = [
        Copy.of(one.view, meter="measured" if one.has_meter else "estimated")
        for one in facts
        if one.view.name in taking_part
    ]
    name = fleet.directory.name
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        show = shown_live(stack) if sys.stderr.isatty() else _silent

        def run(stage: Stage) -> RolloutView:
            assigner = Assigner(name, stage.fleet.releases, [signer], load_boards())
            config = stage.fleet.operator_config()
            return carry_out(
                stage.store, name, config, assigner, checked, actor="rehearsal", stop=stop, on_change=show
            )

        view = rehearse(
            copies, effects, run, fleet=name, releases=fleet.directory.releases, seed=seed,
            plain=len(copies) > _MANY,
        )  # fmt: skip
    if as_json:
        print_json(view)
    else:
        print_rollout(view, every=len(view.members) <= _MANY // 10)
    note("this was a rehearsal: no device was touched")
    if view.phase == "waiting":
        note("a rehearsal ends where it waits for approval; without --approve it goes on")
    click.echo(closing_words(view), err=True)
    code = exit_code(view)
    if code:
        sys.exit(code)


def _silent(_view: RolloutView) -> None:
    """Nothing is shown while it goes on."""
