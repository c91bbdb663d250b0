"""Which model answers who names none, chosen from afar."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeslm import topics
from edgeslm.agent.home.choosing import ChooseModel, take_up_choice
from edgeslm.agent.operations.ports import Command, Done
from edgeslm.agent.serving import ServedModels
from edgeslm.cli.wiring_home import HomeParts, build_home, home_operations
from edgeslm.errors import AssistError, ConfigError, OperationError
from edgeslm.schema.config import AgentConfig
from edgeslm.sim.model import EchoModel


class Silent:
    def tell(self, text: str, share: float | None = None) -> None: ...

    def is_cancelled(self) -> bool:
        return False


@pytest.fixture
def served() -> ServedModels:
    return ServedModels({"first": EchoModel(), "second": EchoModel()})


def _choose(served: ServedModels, file: Path, **args: Any) -> Any:
    return ChooseModel(served, file).begin(Command("id", "choose-model", args), Silent())


def test_the_chosen_model_is_the_default_also_after_a_restart(served: ServedModels, tmp_path: Path) -> None:
    told: list[None] = []
    served.on_change = lambda: told.append(None)
    assert _choose(served, tmp_path / "choice", name="second") == Done({"name": "second"})
    assert served.names() == ("second", "first")
    assert len(told) == 1
    again = ServedModels({"first": EchoModel(), "second": EchoModel()})
    take_up_choice(again, tmp_path / "choice")
    assert again.names() == ("second", "first")


@pytest.mark.parametrize("args", [{"name": "third"}, {"name": "../x"}, {}, {"name": "first", "more": 1}])
def test_what_is_not_served_cannot_be_chosen(
    served: ServedModels, tmp_path: Path, args: dict[str, Any]
) -> None:
    with pytest.raises(OperationError) as caught:
        _choose(served, tmp_path / "choice", **args)
    assert caught.value.reason == "refused"
    assert served.names() == ("first", "second")
    assert not (tmp_path / "choice").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"gone", b"x" * 5000])
def test_a_choice_that_means_nothing_changes_nothing(
    served: ServedModels, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "choice").write_bytes(content)
    take_up_choice(served, tmp_path / "choice")
    assert served.names() == ("first", "second")


def _config(tmp_path: Path, **home: Any) -> AgentConfig:
    return AgentConfig(device="d", state_dir=tmp_path, homeassistant=home)


def test_where_nothing_is_switched_on_nothing_is_made_and_no_order_is_offered(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert build_home(SimpleNamespace(config=config), tmp_path, None, {}) is None
    assert home_operations(config, ServedModels({})) == []
    offered = home_operations(_config(tmp_path, enabled=True), ServedModels({}))
    assert [(operation.op, operation.deadline_s) for operation in offered] == [
        (ChooseModel.op, ChooseModel.deadline_s)
    ]


def test_a_map_that_nothing_would_use_is_an_error(tmp_path: Path) -> None:
    parts = SimpleNamespace(config=_config(tmp_path, enabled=True, home="home.yaml"), link=None)
    with pytest.raises(ConfigError, match="wyoming_port is not"):
        build_home(parts, tmp_path, None, {})


def test_without_the_package_the_port_is_one_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "edgeslm.agent.home.assist", None)
    parts = SimpleNamespace(config=_config(tmp_path, wyoming_port=10400), served=None, link=None)
    with pytest.raises(AssistError, match="package wyoming") as caught:
        build_home(parts, tmp_path, None, {})
    assert "edgeslm[wyoming]" in (caught.value.hint or "")


def test_the_agent_tells_the_home_of_connections_commands_and_models() -> None:
    heard: list[str] = []
    announcer = SimpleNamespace(
        connected=lambda: heard.append("connected"),
        published=lambda token: heard.append(f"published {token}"),
        commanded=heard.append,
        changed=lambda: heard.append("changed"),
    )
    home = HomeParts(announcer, None)
    home.connected()
    home.published(3)
    home.commanded(topics.command_topic("home", "d", "self-test", "x"))
    home.changed()
    home.stop()
    assert heard == ["connected", "published 3", "edgeslm/v1/home/d/cmd/self-test/x", "changed"]
