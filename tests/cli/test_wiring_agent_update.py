"""How a new version of the agent comes to a device, and how it knows that it is well."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import make_archive
from benchmarks.update_trust_rig import Rig
from edgeslm.agent.operations.guest import Guest
from edgeslm.agent.serving import ServedModels
from edgeslm.cli.wiring_agent_update import AgentHealth, FetchedAgents
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.delivery.http_server import PackageServer
from edgeslm.delivery.http_source import HttpSource
from edgeslm.errors import DeliveryCancelledError, DeliveryError, DeliveryPolicyError, InferenceError
from edgeslm.fleet.agent_releases import AgentReleases
from edgeslm.fleet.distribution import public_files
from edgeslm.power.meter import EstimatedMeter
from edgeslm.runtime.model import Answer
from edgeslm.schema.agent_release import AgentInfo
from edgeslm.schema.board import PowerTable
from edgeslm.schema.config import BROKER_RELEASES, UpdatesConfig
from edgeslm.schema.delivery import DeliveryPolicy
from edgeslm.sim.model import EchoModel

METER = EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests"))
SHORT = DeliveryPolicy(deadline_s=3.0, retry_s=0.1, max_retry_s=0.2)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AgentInfo]:
    """The public directory of a repository with one release of the agent, and that."""
    directory = tmp_path_factory.mktemp("released")
    rig = Rig(directory / "rig")
    archive, _ = make_archive(directory, "1.1.0", "x = '" + "word " * 40_000 + "'")
    info = AgentReleases(rig.directory / "repository", clock=rig.clock).add(archive)
    return rig.repository.public, info


def bring(tmp_path: Path, releases: str, broker: Path | None = None, **config: object) -> FetchedAgents:
    settings = UpdatesConfig.model_validate({"delivery": SHORT, **config})
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    return FetchedAgents(
        Fetcher(tmp_path / "fetched"), settings, releases, lambda: FileSource(broker or empty)
    )


def taken(agents: FetchedAgents, info: AgentInfo) -> tuple[bytes, list[float]]:
    shares: list[float] = []
    return agents.fetch(info, shares.append, lambda: False).read_bytes(), shares


class TestAnArchiveComes:
    def test_from_a_directory(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        data, shares = taken(bring(tmp_path, str(public)), info)
        assert data == (public / info.file_path).read_bytes()
        assert shares[-1:] in ([1.0], [])

    def test_over_http(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        with PackageServer(public_files(public)) as server:
            data, _ = taken(bring(tmp_path, server.url), info)
        assert data == (public / info.file_path).read_bytes()

    def test_over_a_cache_of_the_local_network(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        with PackageServer(public_files(public)) as server:
            data, _ = taken(bring(tmp_path, "http://127.0.0.1:9", sources=[server.url]), info)
        assert data == (public / info.file_path).read_bytes()

    def test_over_the_broker_where_nothing_else_is_there(
        self, released: tuple[Path, AgentInfo], tmp_path: Path
    ):
        public, info = released
        broker = (public / info.file_path).parent
        data, _ = taken(bring(tmp_path, BROKER_RELEASES, broker), info)
        assert data == (public / info.file_path).read_bytes()

    def test_not_where_a_source_lies(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        lies = tmp_path / "lies"
        lies.mkdir()
        (lies / f"{info.sha256}.blob").write_bytes(bytes(info.size_bytes))
        (lies / f"{info.chunks_sha256}.blob").write_bytes((public / (info.chunks_path or "")).read_bytes())
        with pytest.raises(DeliveryError):
            taken(bring(tmp_path, BROKER_RELEASES, lies), info)

    def test_not_over_a_link_that_costs(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        settings = UpdatesConfig(delivery=SHORT, is_metered=True)
        with PackageServer(public_files(public)) as server:
            agents = FetchedAgents(Fetcher(tmp_path), settings, server.url, lambda: HttpSource(server.url))
            with pytest.raises(DeliveryPolicyError) as found:
                taken(agents, info)
        assert found.value.retry_after_s is not None

    def test_not_when_it_is_not_wanted_any_more(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        _, info = released
        with pytest.raises(DeliveryCancelledError):
            bring(tmp_path, BROKER_RELEASES).fetch(info, lambda _: None, lambda: True)

    def test_and_is_gone_when_it_is_forgotten(self, released: tuple[Path, AgentInfo], tmp_path: Path):
        public, info = released
        agents = bring(tmp_path, str(public))
        taken(agents, info)
        agents.forget()
        assert {path.name for path in (tmp_path / "fetched").iterdir()} == {".lock"}


class Link:
    """As much of an agent as its health needs."""

    def __init__(self, *, online: bool = True) -> None:
        self.online = online

    def wait_connected(self, timeout_s: float) -> bool:
        del timeout_s
        return self.online


class Mute(EchoModel):
    """A model that loads, and answers nothing."""

    def answer(self, *_: object, **__: object) -> Answer:
        raise InferenceError("the runtime fails")


def with_golden(model: EchoModel, directory: Path) -> EchoModel:
    """`model` with a golden prompt."""
    (directory / "golden.jsonl").write_text(json.dumps({"prompt": "hello", "text": "hello"}) + "\n")
    manifest = model.installed.manifest.model_copy(update={"golden": "golden.jsonl"})
    model.installed = replace(model.installed, directory=directory, manifest=manifest)
    return model


def health(*models: EchoModel, online: bool = True) -> AgentHealth:
    served = ServedModels({model.installed.manifest.name: model for model in models})
    return AgentHealth(Link(online=online), Guest(served, METER, lambda: 0))  # type: ignore[arg-type]


def never() -> bool:
    return False


class TestAVersionOnTrial:
    def test_is_well_when_it_is_at_the_broker_and_all_models_answer(self, tmp_path: Path):
        model = with_golden(EchoModel(), tmp_path)
        found = health(model)
        assert found.served() == ["echo"]
        assert found.missing(["echo"], never) is None
        assert found.missing(["echo"], never) is None
        assert model.answered == ["hello"], "each is asked once"

    def test_is_not_while_it_is_not_at_the_broker(self):
        assert health(EchoModel(), online=False).missing([], never) == "it is not at the broker"

    def test_is_not_where_a_model_of_before_is_gone(self):
        assert health(EchoModel()).missing(["echo", "lamp"], never) == "it does not serve lamp"
        assert health().missing([], never) == "it does not serve anything"

    def test_is_not_where_a_model_answers_nothing(self, tmp_path: Path):
        found = health(with_golden(Mute(), tmp_path))
        assert found.missing([], never) == "echo does not answer: the runtime fails"

    def test_is_not_delayed_by_prompts_of_users_when_it_has_to_end(self, tmp_path: Path):
        served = ServedModels({"echo": with_golden(EchoModel(), tmp_path)})
        found = AgentHealth(Link(), Guest(served, METER, lambda: 1))  # type: ignore[arg-type]
        assert "does not answer" in (found.missing([], lambda: True) or "")

    def test_is_well_where_users_were_answered_already(self, tmp_path: Path):
        model = with_golden(Mute(), tmp_path)
        served = ServedModels({"echo": model})
        with served.turn("echo"):
            pass
        found = AgentHealth(Link(), Guest(served, METER, lambda: 1))  # type: ignore[arg-type]
        assert found.missing(["echo"], never) is None
