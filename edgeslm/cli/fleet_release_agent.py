"""``edgeslm fleet release add-agent|withdraw-agent``: releases of the agent itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeslm.cli.fleet_common import print_table
from edgeslm.cli.fleet_release_common import Change, changing
from edgeslm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeslm.fleet.agent_releases import AgentReleases
    from edgeslm.fleet.releases import ReleaseRepository
    from edgeslm.schema.agent_release import AgentTarget

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command("add-agent")
@click.argument("archive", type=_FILE)
@click.option("--floor", help="From here on no older version than this one is safe.")
@changing
def add_agent(change: Change, archive: Path, floor: str | None) -> None:
    """Release ARCHIVE, a version of edgeslm itself (edgeslm agent pack), for devices to be sent to.

    One version may have several archives, one for each kind of board. Without --key it lies pending until it is signed.
    """
    from pydantic import ValidationError  # noqa: PLC0415

    from edgeslm.schema.agent_release import UpdateAgentArgs  # noqa: PLC0415
    from edgeslm.wheelhouse import check_archive  # noqa: PLC0415

    found = check_archive(archive)
    if floor is not None:
        try:
            UpdateAgentArgs(version=floor, sha256s=(found.sha256,))
        except ValidationError as error:
            raise UsageError(f"'{floor[:40]}' is no version", hint="Such as 1.2.0") from error
    change.carry_out(
        "add-agent",
        f"edgeslm@{found.manifest.version}",
        lambda repository: agents_of(repository).add(archive, floor=floor),
        sha256=found.sha256,
    )


@click.command("withdraw-agent")
@click.argument("version")
@changing
def withdraw_agent(change: Change, version: str) -> None:
    """Take VERSION of edgeslm itself back: no device goes to it any more. The security floor stays."""
    change.carry_out(
        "withdraw-agent", f"edgeslm@{version}", lambda repository: agents_of(repository).withdraw(version)
    )


def agents_of(repository: ReleaseRepository) -> AgentReleases:
    """The releases of the agent in a repository, or in a copy of one.

    Raises:
        ReleaseRepositoryError: it cannot be read.
    """
    from edgeslm.fleet.agent_releases import AgentReleases  # noqa: PLC0415

    return AgentReleases(repository.public.parent)


def print_agents(known: Sequence[AgentTarget]) -> None:
    """The releases of the agent as a table; nothing where there are none."""
    if not known:
        return
    print_table(
        ["AGENT", "BYTES", "MACHINE", "PYTHON", "GLIBC", "FLOOR", "SHA256"],
        [
            [
                one.info.version,
                str(one.info.size_bytes),
                one.info.requires.machine,
                ", ".join(one.info.requires.pythons),
                one.info.requires.glibc,
                one.floor,
                one.info.sha256[:12],
            ]
            for one in known
        ],
        empty="",
    )
