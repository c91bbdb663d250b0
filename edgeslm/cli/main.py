"""``edgeslm``: the root of the command line."""

from __future__ import annotations

import os

import click

import edgeslm
from edgeslm.cli.output import CommandGroup, configure_logging

# We use no pydantic plugins; looking for them reads the metadata of every installed package at start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

_COMMANDS = {
    "agent": ("edgeslm.cli.agent:agent", "Run the device agent."),
    "board": ("edgeslm.cli.board:board", "Types of boards: what is known of each, and which one this is."),
    "broker": ("edgeslm.cli.broker:broker", "Set up the MQTT broker."),
    "completion": ("edgeslm.cli.completion:completion", "Let the shell complete words and names."),
    "contract": ("edgeslm.cli.contract:contract", "Write down what devices hear and say."),
    "cache": ("edgeslm.cli.cache:cache", "Keep files of releases near the devices that want them."),
    "demo": ("edgeslm.cli.demo:demo", "Broker, agent and a simulated home on this machine."),
    "doctor": ("edgeslm.cli.doctor:doctor", "Check what this machine can do, and say what is missing."),
    "flash": ("edgeslm.cli.flash:flash", "Make boards ready: prepare images, write cards."),
    "fleet": ("edgeslm.cli.fleet:fleet", "Run a fleet: who belongs to it, and what each device may do."),
    "install": ("edgeslm.cli.install:install", "Run the agent as a service of this machine."),
    "model": ("edgeslm.cli.model:model", "Inspect, verify, pack and run model packages."),
    "pool": ("edgeslm.cli.pool:pool", "Share prompts among the devices that serve a model."),
    "power": ("edgeslm.cli.power:power", "Measure, explain and report what the board draws."),
    "profile": (
        "edgeslm.cli.profile:profile",
        "Show what boards can be set up to do, and whether it fits one.",
    ),
    "prompt": ("edgeslm.cli.prompt:prompt", "Send a prompt to a device or a pool over MQTT."),
    "record": ("edgeslm.cli.record:record", "Record MQTT messages with their times, to replay them."),
    "rules": ("edgeslm.cli.rules:rules", "Check, try, watch and replay rules: readings in, actions out."),
    "sparkplug": ("edgeslm.cli.sparkplug:sparkplug", "Show devices to hosts that speak Sparkplug B."),
    "sim": ("edgeslm.cli.sim:sim", "Simulate boards: power, heat, battery, and meters that fail."),
    "uninstall": ("edgeslm.cli.install:uninstall", "Take the agent away from this machine."),
}


@click.group(
    cls=CommandGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(edgeslm.__version__, prog_name="edgeslm")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.option("-v", "--verbose", count=True, help="Log more to stderr; twice for everything.")
def cli(debug: bool, verbose: int) -> None:
    """Small AI models on edge boards: int8 TFLite models that answer over MQTT."""
    configure_logging(2 if debug else verbose)


def main() -> None:
    """Entry point of the ``edgeslm`` program."""
    cli()
