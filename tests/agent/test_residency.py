"""Models that share a memory in which not all of them fit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.residency import ModelOnCall, Residency
from edgeslm.agent.service import Agent
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import ModelLoadError, ModelsMemoryError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options
from edgeslm.sim.model import EchoModel

from .conftest import DEVICE, FLEET, METER, Client

MB = 1_000_000
SIZES = {"small": 10, "middle": 50, "large": 60, "huge": 200}
LIMIT = 100 * MB


class Shelf:
    """Loads simulated models, and counts."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.models: dict[str, EchoModel] = {}
        self.during: Callable[[str], None] = lambda name: None

    def package(self, name: str, version: str = "1.0.0") -> InstalledPackage:
        manifest = EchoModel(name).installed.manifest.model_copy(update={"version": version})
        return InstalledPackage(Path("/nonexistent"), manifest, f"{name}-{version}")

    def load(self, installed: InstalledPackage) -> EchoModel:
        name = installed.manifest.name
        self.during(name)
        self.loaded.append(name)
        model = EchoModel(name)
        model.installed = installed
        self.models[name] = model
        return model

    def need(self, installed: InstalledPackage) -> int:
        return SIZES[installed.manifest.name] * MB


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def residency(shelf: Shelf) -> Residency:
    return Residency(LIMIT, shelf.need, shelf.load)


@pytest.fixture
def served(shelf: Shelf, residency: Residency) -> ServedModels:
    models = {name: residency.load(shelf.package(name)) for name in ("small", "middle", "large")}
    return ServedModels(models, residency.load, residency=residency)


def loaded(served: ServedModels) -> set[str]:
    return set(served.names()) - served.resting()


def ask(served: ServedModels, name: str) -> str:
    with served.turn(name) as model:
        return model.answer("hi", Options()).generation.text


def test_the_one_used_least_recently_makes_room(served: ServedModels, shelf: Shelf) -> None:
    assert loaded(served) == {"large"}
    ask(served, "middle")
    assert loaded(served) == {"middle"}
    assert ask(served, "small") == "hi"
    assert loaded(served) == {"small", "middle"}
    ask(served, "large")
    assert loaded(served) == {"small", "large"}
    ask(served, "small")
    ask(served, "middle")
    assert loaded(served) == {"small", "middle"}
    assert shelf.loaded == ["small", "middle", "large", "middle", "small", "large", "middle"]


def test_what_is_not_loaded_is_known_all_the_same(served: ServedModels) -> None:
    model = served.get("small")
    assert isinstance(model, ModelOnCall)
    assert not model.is_loaded
    assert (model.name, model.tasks, model.context_tokens) == ("small@1.0.0", ("generate",), 200)
    assert model.threads == 1
    assert model.count_tokens("three words here") >= 3
    assert model.count_tokens("x" * 10_000) == model.context_tokens
    with pytest.raises(ModelLoadError, match="not loaded"):
        model.answer("hi", Options())


def test_one_that_computes_is_not_let_go_of(served: ServedModels) -> None:
    with served.turn("large") as large:
        assert served.fits_beside(served.get("small"))
        assert not served.fits_beside(served.get("middle"))
        with served.turn("small", within=True):
            assert loaded(served) == {"small", "large"}
        with pytest.raises(ModelsMemoryError, match="leave 40"), served.turn("middle", within=True):
            raise AssertionError
        assert large.answer("still here", Options()).generation.text == "still here"


def test_one_that_alone_is_too_large_is_refused_by_name(residency: Residency, shelf: Shelf) -> None:
    with pytest.raises(ModelsMemoryError, match=r"huge@1\.0\.0 will need") as raised:
        residency.load(shelf.package("huge"))
    assert (raised.value.needed_bytes, raised.value.free_bytes) == (200 * MB, LIMIT)
    assert shelf.loaded == []
    assert residency.load(shelf.package("large")).is_loaded


def test_a_load_that_fails_leaves_the_room_free(served: ServedModels, shelf: Shelf) -> None:
    def fail(name: str) -> None:
        raise ModelLoadError("a bad block", path="")

    shelf.during = fail
    for _ in range(5):
        with pytest.raises(ModelLoadError, match="a bad block"):
            ask(served, "small")
    shelf.during = lambda name: None
    assert ask(served, "small") == "hi"
    assert ask(served, "large") == "hi"
    assert served.activity("small").failed == 5


def test_never_more_than_the_limit_is_loaded_however_they_are_asked(served: ServedModels) -> None:
    most = 0
    for number in range(60):
        ask(served, ("small", "middle", "large")[number * 7 % 11 % 3])
        most = max(most, MB * sum(SIZES[name] for name in loaded(served)))
    assert most <= LIMIT


@pytest.mark.parametrize("beside", [True, False])
def test_a_new_release_takes_the_place_of_the_old_one(
    served: ServedModels, shelf: Shelf, *, beside: bool
) -> None:
    served.swap("large", shelf.package("large", "1.1.0"), beside=beside)
    assert served.get("large").installed.manifest.version == "1.1.0"
    for name in ("small", "middle", "large"):
        assert ask(served, name) == "hi"
    assert MB * sum(SIZES[name] for name in loaded(served)) <= LIMIT
    served.withdraw("large")
    assert loaded(served) <= {"small", "middle"}
    assert (ask(served, "small"), ask(served, "middle")) == ("hi", "hi")
    assert loaded(served) == {"small", "middle"}


def test_a_swap_beside_an_answer_waits_for_room_instead_of_failing(
    served: ServedModels, shelf: Shelf
) -> None:
    threads = []
    with served.turn("large"):
        threads.append(
            threading.Thread(
                target=served.swap,
                args=("large", shelf.package("large", "2.0.0")),
                kwargs={"beside": True},
            )
        )
        threads[0].start()
        time.sleep(0.05)
        assert served.get("large").installed.manifest.version == "1.0.0"
    threads[0].join(5)
    assert served.get("large").installed.manifest.version == "2.0.0"
    assert ask(served, "large") == "hi"


# --- in an agent ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path, served: ServedModels) -> Iterator[Client]:
    broker = InProcessBroker()
    agent = Agent(
        AgentIdentity(FLEET, DEVICE, "host"),
        served,
        InProcessLink(broker, "agent", availability(FLEET, DEVICE, "offline")),
        METER,
        Journal(tmp_path / "agent.db"),
    )
    client = Client(broker)
    agent.start()
    assert agent.wait_connected(5)
    yield client
    agent.stop()
    client.close()


def shown(client: Client) -> dict[str, bool]:
    """What the device says of its models now."""
    infos = [m for m in client.kept if m.topic == topics.device_topic(FLEET, DEVICE, "info")]
    return {model["name"]: model["loaded"] for model in json.loads(infos[-1].payload)["models"]}


def test_prompts_are_answered_by_whichever_model_and_the_device_tells_what_is_loaded(client: Client) -> None:
    for number in range(9):
        name = ("small", "large", "middle")[number % 3]
        client.ask({"id": f"p{number}", "prompt": name, "model": name})
        assert client.result(f"p{number}")["text"] == name
    until_s = time.monotonic() + 5
    while shown(client) != {"small": False, "middle": True, "large": False}:
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_the_time_to_load_counts_towards_the_deadline(client: Client, shelf: Shelf) -> None:
    shelf.during = lambda name: time.sleep(0.2)
    client.ask({"id": "late", "prompt": "x", "model": "small", "deadline_ms": 100})
    late = client.result("late")
    assert late.get("finish_reason") == "deadline" or late["error"]["code"] == "deadline"
    client.ask({"id": "far", "prompt": "x", "model": "middle"})
    assert client.result("far")["receipt"]["queue_ms"] >= 200


def test_an_alarm_whose_model_has_room_beside_goes_first_and_another_comes_next(
    client: Client, served: ServedModels, shelf: Shelf
) -> None:
    ask(served, "large")
    shelf.models["large"].token_s = 0.03
    words = " ".join("x" * 40)
    client.ask({"id": "long", "prompt": words, "model": "large", "stream": True})
    client.next(lambda m: m.topic.endswith("/stream/long"))
    client.ask({"id": "fits", "prompt": "a b", "model": "small", "priority": "high"})
    client.result("fits")
    assert loaded(served) == {"small", "large"}
    client.ask({"id": "waits", "prompt": "a b", "model": "middle", "priority": "high"})
    client.result("waits")
    order = [m.topic.rpartition("/")[2] for m in client.kept if "/result/" in m.topic]
    assert order == ["fits", "long", "waits"]
    assert client.result("long")["text"] == words
