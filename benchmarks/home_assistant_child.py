"""A headless Home Assistant with its MQTT integration and what it is told to add. Orders on stdin, answers on stdout.

Each is a line. Run by the Python of an environment that has ``homeassistant``, which need not have edgeslm:
``python home_assistant_child.py CONFIG_DIR MQTT_PORT HTTP_PORT [CA CERTIFICATE KEY]``. Where it is run again over the
same directory it knows its entities and their last states, as after a restart.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from homeassistant import auth, bootstrap, config_entries, core, loader
from homeassistant.helpers import device_registry, entity_registry
from homeassistant.setup import async_setup_component

OF_ITS_OWN = "async_forward_entry_setups for integration mqtt"
"""Home Assistant says this of itself when one discovery message needs several platforms that are not loaded yet."""


class Warnings(logging.Handler):
    """Keeps what would stand in the log as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        text = record.getMessage()
        if record.name.startswith("homeassistant") and OF_ITS_OWN not in text:
            self.kept.append(f"{record.levelname} {record.name}: {text}"[:2000])


def shown(identity: list[str]) -> dict[str, str]:
    """What Home Assistant keeps of its three files for TLS; nothing without them."""
    names = ("certificate", "client_cert", "client_key")
    return {name: Path(file).read_text() for name, file in zip(names, identity, strict=False)}


async def make(config_dir: str, port: int, http_port: int, identity: dict[str, str]) -> Any:
    """Home Assistant, started."""
    hass = core.HomeAssistant(config_dir)
    loader.async_setup(hass)
    hass.config.skip_pip = True
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [{"type": "homeassistant"}], [])
    components: dict[str, dict[str, Any]] = {
        "homeassistant": {},
        "http": {"http": {"server_host": ["127.0.0.1"], "server_port": http_port}},
        "mqtt": {},
        **{domain: {} for domain in hass.config_entries.async_domains()},
    }
    for domain, config in components.items():
        if not await async_setup_component(hass, domain, config):
            raise RuntimeError(f"{domain} does not start")
    if not hass.config_entries.async_entries("mqtt"):
        entry = config_entries.ConfigEntry(
            data={"broker": "127.0.0.1", "port": port, "protocol": "5", **identity},
            discovery_keys={},
            domain="mqtt",
            minor_version=1,
            options={},
            source="user",
            subentries_data=(),
            title="mqtt",
            unique_id=None,
            version=2,
        )
        await hass.config_entries.async_add(entry)
    await hass.async_start()
    return hass


async def states(hass: Any, _: dict[str, Any]) -> Any:
    """All entities by unique id."""
    found = {}
    for entry in entity_registry.async_get(hass).entities.values():
        state = hass.states.get(entry.entity_id)
        found[entry.unique_id] = {
            "entity_id": entry.entity_id,
            "state": None if state is None else state.state,
            "attributes": {}
            if state is None
            else json.loads(json.dumps(dict(state.attributes), default=str)),
        }
    return found


async def devices(hass: Any, _: dict[str, Any]) -> Any:
    """All devices."""
    found = device_registry.async_get(hass).devices.values()
    return [{"name": device.name, "model": device.model, "sw_version": device.sw_version} for device in found]


async def flow(hass: Any, order: dict[str, Any]) -> Any:
    """Add an integration as a person does: what its form says, with one set of answers."""
    shown = await hass.config_entries.flow.async_init(order["domain"], context={"source": "user"})
    told = await hass.config_entries.flow.async_configure(shown["flow_id"], order["data"])
    await hass.async_block_till_done()
    entry = told.get("result")
    return {
        "step": shown["step_id"],
        "type": str(told["type"].value),
        "title": told.get("title"),
        "errors": told.get("errors"),
        "state": None if entry is None else str(entry.state.value),
    }


async def converse(hass: Any, order: dict[str, Any]) -> Any:
    """Say something to a conversation agent, as Assist does, and what it replies."""
    data = {"text": order["text"], "agent_id": order["agent"], "language": order["language"]}
    told = await hass.services.async_call(
        "conversation", "process", data, blocking=True, return_response=True
    )
    return json.loads(json.dumps(told, default=str))


async def agents(hass: Any, _: dict[str, Any]) -> Any:
    """All conversation agents that are entities."""
    return [state.entity_id for state in hass.states.async_all("conversation")]


async def call(hass: Any, order: dict[str, Any]) -> Any:
    """Do what a person does in the user interface."""
    await hass.services.async_call(order["domain"], order["service"], order["data"], blocking=True)


async def main(config_dir: str, port: int, http_port: int, identity: dict[str, str]) -> None:
    """Serve orders until there are no more."""
    logging.basicConfig(level=logging.WARNING)
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    orders: dict[str, Callable[[Any, dict[str, Any]], Awaitable[Any]]] = {
        "states": states,
        "devices": devices,
        "call": call,
        "flow": flow,
        "converse": converse,
        "agents": agents,
    }
    hass = await make(config_dir, port, http_port, identity)
    loop = asyncio.get_running_loop()
    print(json.dumps("ready"), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order["do"] == "stop":
            break
        try:
            answer = warnings.kept if order["do"] == "warnings" else await orders[order["do"]](hass, order)
        except Exception as error:  # the one who ordered it is to know
            answer = {"fault": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    await hass.async_stop(force=True)


if __name__ == "__main__":
    Path(sys.argv[1], "configuration.yaml").touch()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), shown(sys.argv[4:])))
