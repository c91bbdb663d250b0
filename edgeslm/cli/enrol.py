"""``edgeslm agent enrol``: a device joins a fleet with a claim."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import edgeslm
from edgeslm.cli.output import BROKER_HOST, BROKER_PORT, FLEET, json_option, print_json, reporting_errors
from edgeslm.errors import ClaimError, DeviceStateError, UsageError

if TYPE_CHECKING:
    from edgeslm.schema.enrol import Claim
    from edgeslm.trust.identity import Identity

_MAX_CLAIM_BYTES = 65_536


@click.command()
@click.argument("source", metavar="[CLAIM]", default="-")
@click.option(
    "--device", envvar="EDGESLM_DEVICE", show_envvar=True, help="Name to propose, where the claim has none."
)
@click.option(
    "--board", envvar="EDGESLM_BOARD", show_envvar=True, help="Board to report instead of the recognised one."
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="/var/lib/edgeslm",
    show_default=True,
    envvar="EDGESLM_STATE_DIR",
    show_envvar=True,
    help="Where the agent's state lies; the identity goes below it.",
)
@click.option("--fleet", envvar=FLEET, show_envvar=True, help="Fleet, for a claim that is typed.")
@click.option("--host", envvar=BROKER_HOST, show_envvar=True, help="Its broker, for a claim that is typed.")
@click.option(
    "--port",
    type=int,
    default=8884,
    show_default=True,
    envvar=BROKER_PORT,
    show_envvar=True,
    help="The broker's port for claims, for a claim that is typed.",
)
@click.option(
    "--replace", is_flag=True, help="Join although this device belongs to a fleet already, with a new key."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    help="Seconds to wait, approval included.",
)
@json_option
@reporting_errors
def enrol(
    source: str,
    device: str | None,
    board: str | None,
    state_dir: Path,
    fleet: str | None,
    host: str | None,
    port: int,
    replace: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Join a fleet with CLAIM, a file from `edgeslm fleet claim --out`; without it the token is asked for.

    The token may also come through stdin. A power cut at any moment does no harm: run the same command again, and
    it goes on with the same key. Once it is done it does nothing more, so it can run at every boot.
    """
    from edgeslm.agent.enrolment import join_fleet  # noqa: PLC0415
    from edgeslm.link.mqtt import MqttLink  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.trust.identity import IdentityStore  # noqa: PLC0415
    from edgeslm.trust.machine import read_machine  # noqa: PLC0415

    store = IdentityStore(state_dir / "identity")
    claim = _claim(source, fleet, host, port)
    current = store.current()
    if current is not None and current.claim != claim.claim and not replace:
        facts = current.facts
        raise DeviceStateError(
            f"this device is {facts.fleet}/{facts.device} already",
            name=facts.device,
            state="enrolled",
            hint="Give up that identity and join with this claim: --replace",
        )
    if current is not None and current.claim == claim.claim and store.is_settled(current):
        _print(current, as_json=as_json)
        return
    identity = join_fleet(
        store,
        claim,
        MqttLink,
        device=device,
        machine=read_machine(choose_board(board).name, store.boots_file),
        agent=edgeslm.__version__,
        timeout_s=timeout_s,
        on_state=lambda text: click.echo(text, err=True),
    )
    _print(identity, as_json=as_json)


def _claim(source: str, fleet: str | None, host: str | None, port: int) -> Claim:
    """The claim in a file, or typed."""
    from edgeslm.agent.enrolment import fetch_claim  # noqa: PLC0415
    from edgeslm.codec import decode  # noqa: PLC0415
    from edgeslm.errors import CodecError  # noqa: PLC0415
    from edgeslm.schema.enrol import Claim  # noqa: PLC0415
    from edgeslm.trust.claim import read_token  # noqa: PLC0415

    text = _read(source)
    if text.lstrip().startswith("{"):
        try:
            return decode(Claim, text.encode(), max_bytes=_MAX_CLAIM_BYTES)
        except CodecError as error:
            raise ClaimError(f"{source} is no claim: {error}") from error
    token = read_token(text)
    if fleet is None or host is None:
        raise UsageError("a typed claim needs --fleet and --host", hint="`edgeslm fleet claim` printed both")
    return fetch_claim(token, fleet=fleet, host=host, port=port)


def _read(source: str) -> str:
    if source == "-":
        if sys.stdin.isatty():
            return str(click.prompt("Claim", err=True))
        return sys.stdin.read(_MAX_CLAIM_BYTES)
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.read(_MAX_CLAIM_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ClaimError(
            f"{source} cannot be read: {error}", hint="A claim's token is typed or piped, never an argument"
        ) from error


def _print(identity: Identity, *, as_json: bool) -> None:
    facts = identity.facts
    if as_json:
        print_json(
            {
                "fleet": facts.fleet,
                "device": facts.device,
                "host": identity.host,
                "port": identity.port,
                "serial": facts.serial,
                "not_after_s": facts.not_after_s,
                "directory": str(identity.directory),
            }
        )
        return
    click.echo(f"this device is {facts.fleet}/{facts.device}; its broker is {identity.host}:{identity.port}")
