"""Messages in place of a prompt, through a whole agent with real models."""

import json
import zipfile
from importlib import resources

import pytest

from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent, AgentIdentity
from edgeslm.cli import wiring
from edgeslm.link.inprocess import InProcessLink
from edgeslm.models.packing import pack_directory
from edgeslm.runtime.chat_renderer import examine
from edgeslm.runtime.model import load_model
from tests.agent.conftest import DEVICE, FLEET, METER, World

TALK = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ m.content }}{{ ' ' if m.role == 'system' else '<sep>' if m.role == 'user' else eos_token }}{% endfor %}"
)
SYSTEM = "you are the voice of a home"
SAID = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "lock the front door"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model that ships, and the same with a chat template; the one without comes first."""
    store = tmp_path_factory.mktemp("store")
    directory, made = store / "talking", store / "talking.slm"
    with zipfile.ZipFile(str(resources.files("edgeslm._packages") / "home-command.slm")) as archive:
        archive.extractall(directory)
    draft = json.loads((directory / "manifest.json").read_text())
    del draft["files"]
    draft |= {"name": "talking", "prompt": {"lower": True, "collapse_whitespace": True}}
    draft["chat_template"] = {"file": "chat_template.jinja", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "manifest.json").write_text(json.dumps(draft))
    (directory / "chat_template.jinja").write_text(TALK)
    pack_directory(directory, made, None, examine)
    found = [
        load_model(wiring.install_package(one, store / "kept")) for one in ("builtin:home-command", str(made))
    ]
    return {model.installed.manifest.name: model for model in found}


@pytest.fixture
def talking(world: World, models):
    agent = Agent(
        AgentIdentity(FLEET, DEVICE, "host"),
        models,
        InProcessLink(world.broker, "agent"),
        METER,
        Journal(world.state_dir / "agent.db"),
    )
    agent.start()
    assert agent.wait_connected(5)
    world.agents.append(agent)
    return world


def test_the_first_model_that_takes_messages_answers_them(talking: World) -> None:
    talking.client.ask({"id": "a", "messages": SAID})
    result = talking.client.result("a")
    assert result["receipt"]["model"] == "talking@1.0.0"
    assert result["text"]
    info = next(json.loads(m.payload) for m in talking.client.kept if m.topic.endswith("/info"))
    assert {model["name"]: model["messages"] for model in info["models"]} == {
        "home-command": False,
        "talking": True,
    }


def test_what_the_system_says_is_computed_once(talking: World) -> None:
    for name in ("first", "second"):
        talking.client.ask({"id": name, "messages": SAID})
    assert talking.client.result("second")["receipt"]["cached_tokens"] > 0


def test_an_id_stands_for_its_messages(talking: World) -> None:
    talking.client.ask({"id": "a", "messages": SAID})
    first = talking.client.result("a")
    talking.client.ask({"id": "a", "messages": SAID})
    assert talking.client.result("a") == first
    talking.client.ask({"id": "a", "messages": SAID[1:]})
    assert talking.client.result("a")["error"]["code"] == "bad_request"


def test_a_model_without_a_form_for_messages_says_what_to_do(talking: World) -> None:
    talking.client.ask({"id": "a", "model": "home-command", "messages": SAID})
    error = talking.client.result("a")["error"]
    assert error["code"] == "bad_request"
    assert "messages" in error["message"]
    talking.client.ask({"id": "b", "model": "home-command", "prompt": "lock the front door"})
    assert json.loads(talking.client.result("b")["text"])["intent"] == "HassTurnOn"
