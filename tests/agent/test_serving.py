"""Models that are swapped while they answer."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_device_rig import NAME, make_release
from edgeslm import topics
from edgeslm.agent.description import AgentIdentity, availability
from edgeslm.agent.journal import Journal
from edgeslm.agent.service import Agent
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, UnknownModelError
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.port import Message
from edgeslm.models.store import ModelStore
from edgeslm.power.meter import EstimatedMeter
from edgeslm.runtime.model import load_model
from edgeslm.schema.board import PowerTable
from edgeslm.schema.installed import InstalledPackage
from edgeslm.sim.model import EchoModel

FLEET, DEVICE = "home", "dev1"


def echo(version: str = "1.0.0", name: str = "echo", token_s: float = 0.0) -> EchoModel:
    model = EchoModel(name, token_s)
    manifest = model.installed.manifest.model_copy(update={"version": version})
    model.installed = InstalledPackage(
        Path("/nonexistent"), manifest, version.replace(".", "").rjust(64, "0")
    )
    return model


class Loader:
    """Loads what it is given in advance."""

    def __init__(self, *models: EchoModel) -> None:
        self.models = {model.installed.sha256: model for model in models}
        self.during: Callable[[], None] = lambda: None

    def __call__(self, installed: InstalledPackage) -> EchoModel:
        self.during()
        if installed.sha256 not in self.models:
            raise ModelLoadError("no such graph", path="")
        return self.models[installed.sha256]


OLD, NEW, OTHER = echo("1.0.0"), echo("1.1.0"), echo("3.0.0", "other")


@pytest.fixture
def served() -> ServedModels:
    return ServedModels({"echo": OLD}, Loader(OLD, NEW, OTHER))


def version(served: ServedModels, name: str | None = None) -> str:
    return served.get(name).installed.manifest.version


@pytest.mark.parametrize("beside", [True, False])
def test_a_swap_changes_who_answers_and_nothing_else(served: ServedModels, beside: bool) -> None:
    served.swap("other", OTHER.installed, beside=True)
    told: list[tuple[str, ...]] = []
    served.on_change = lambda: told.append(served.names())
    assert served.swap("echo", NEW.installed, beside=beside) < 1
    assert version(served) == "1.1.0"
    assert served.names() == ("echo", "other"), "the default stays the default"
    assert told == [("echo", "other")]


def test_what_serves_already_is_left_alone(served: ServedModels) -> None:
    told: list[int] = []
    served.on_change = lambda: told.append(1)
    assert served.swap("echo", OLD.installed, beside=False) == 0
    assert told == []


@pytest.mark.parametrize("beside", [True, False])
def test_what_does_not_load_leaves_the_old_one_in_service(served: ServedModels, beside: bool) -> None:
    with pytest.raises(ModelLoadError):
        served.swap("echo", echo("6.6.6").installed, beside=beside)
    assert version(served) == "1.0.0"
    with pytest.raises(ModelLoadError):
        served.swap("new", echo("6.6.6", "new").installed, beside=beside)
    assert served.names() == ("echo",)


def test_what_cannot_even_be_brought_back_is_not_served() -> None:
    served = ServedModels({"echo": OLD, "other": OTHER}, Loader())
    with pytest.raises(ModelLoadError):
        served.swap("echo", NEW.installed, beside=False)
    assert served.names() == ("other",)


def test_a_name_comes_and_goes(served: ServedModels) -> None:
    served.swap("other", OTHER.installed, beside=True)
    assert version(served, "other") == "3.0.0"
    served.withdraw("other")
    assert served.served("other") is None
    for ask in (
        served.get,
        lambda name: served.turn(name).__enter__(),
        lambda name: served.hold(name).__enter__(),
    ):
        with pytest.raises(UnknownModelError):
            ask("other")
    with served.turn("echo"):
        pass  # who asked in vain holds nothing up


def test_a_swap_in_place_lets_go_of_the_old_model_before_it_loads() -> None:
    import weakref  # noqa: PLC0415

    model = echo("1.0.0")
    gone = weakref.ref(model)
    loader = Loader(NEW)
    served = ServedModels({"echo": model}, loader)
    del model
    seen: list[object] = []
    loader.during = lambda: seen.append(gone())
    served.swap("echo", NEW.installed, beside=False)
    assert seen == [None]


def test_a_model_is_warm_before_it_answers_where_there_is_time() -> None:
    warm: list[tuple[str, str]] = []
    served = ServedModels(
        {"echo": OLD}, Loader(OLD, NEW), lambda model: warm.append((model.name, version(served)))
    )
    served.swap("echo", NEW.installed, beside=True)
    served.swap("echo", OLD.installed, beside=False)
    assert warm == [("echo@1.1.0", "1.0.0")]


def test_nothing_begins_while_a_model_is_held_and_turns_go_round(served: ServedModels) -> None:
    order: list[str] = []
    ready = threading.Semaphore(0)

    def ask(what: str) -> None:
        with served.turn("echo"):
            order.append(what)

    threads = []
    with served.hold("echo"):
        for what in ("a", "b", "c"):
            threads.append(threading.Thread(target=ask, args=(what,)))
            threads[-1].start()
            while served._turns._next < len(threads) + 1:
                ready.acquire(timeout=0.001)
        order.append("held")
    for thread in threads:
        thread.join(5)
    assert order == ["held", "a", "b", "c"]


def test_activity_counts_what_the_runtime_failed_at_and_not_what_the_prompt_did(served: ServedModels) -> None:
    errors = [None, InferenceError("x"), BadRequestError("x"), ModelLoadError("x", path=""), ValueError("x")]
    for error in errors:
        try:
            with served.turn(None):
                assert served.activity("echo").is_busy
                assert served.any_activity().is_busy
                if error is not None:
                    raise error
        except (InferenceError, BadRequestError, ModelLoadError, ValueError):
            pass
    served.swap("other", OTHER.installed, beside=True)
    with served.turn("other"):
        pass
    assert (served.activity("echo").begun, served.activity("echo").failed) == (5, 3)
    total = served.any_activity()
    assert (total.begun, total.failed, total.is_busy) == (6, 3, False)
    assert served.activity("none").begun == 0


# --- in an agent --------------------------------------------------------------------------------------------


class Ears:
    """Hears everything of one fleet."""

    def __init__(self, broker: InProcessBroker) -> None:
        self.heard: list[Message] = []
        self.link = InProcessLink(broker, "ears")
        self.link.start(self, [(f"{topics.ROOT}/#", 1)])

    def on_message(self, message: Message) -> None:
        self.heard.append(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_published(self, token: int) -> None: ...

    def results(self, name: str) -> list[dict[str, object]]:
        found = [item for item in self.heard if item.topic.endswith(f"/result/{name}")]
        return [json.loads(item.payload) for item in found]

    def wait(self, is_met: Callable[[], object], timeout_s: float = 20.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not is_met():
            assert time.monotonic() < until_s, [item.topic for item in self.heard][-6:]
            time.sleep(0.005)


class Rig:
    def __init__(self, directory: Path, served: ServedModels) -> None:
        self.broker = InProcessBroker()
        self.ears = Ears(self.broker)
        self.served = served
        self.agent = Agent(
            AgentIdentity(FLEET, DEVICE, "host"),
            served,
            InProcessLink(self.broker, "agent", availability(FLEET, DEVICE, "offline")),
            EstimatedMeter(PowerTable(idle_w=2.0, core_load_w=1.0, source="made up for tests")),
            Journal(directory / "agent.db"),
        )
        self.agent.start()
        assert self.agent.wait_connected(5)

    def ask(self, name: str, prompt: str, topic: str | None = None, **fields: object) -> None:
        body = json.dumps({"id": name, "prompt": prompt, **fields}).encode()
        self.ears.link.publish(Message(topic or topics.device_topic(FLEET, DEVICE, "prompt"), body))

    def info(self) -> dict[str, str]:
        message = self.broker.retained(topics.device_topic(FLEET, DEVICE, "info"))
        assert message is not None
        return {model["name"]: model["version"] for model in json.loads(message.payload)["models"]}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, ServedModels({"echo": OLD}, Loader(OLD, NEW, OTHER)))
    yield made
    made.agent.stop()
    made.ears.link.stop()


def test_info_is_announced_anew_and_pools_follow(rig: Rig) -> None:
    pool = topics.pool_topic(FLEET, "other")
    rig.served.swap("echo", NEW.installed, beside=True)
    rig.served.swap("other", OTHER.installed, beside=True)
    rig.ears.wait(lambda: rig.info() == {"echo": "1.1.0", "other": "3.0.0"})
    rig.ask("pooled", "from the pool", pool, model="other")
    rig.ears.wait(lambda: rig.ears.results("pooled"))
    rig.served.withdraw("other")
    rig.ears.wait(lambda: rig.info() == {"echo": "1.1.0"})
    rig.ask("late", "nobody there", pool, model="other")
    rig.ask("gone", "x", model="other")
    rig.ears.wait(lambda: rig.ears.results("gone"))
    assert rig.ears.results("gone")[0]["error"]["code"] == "unknown_model"
    assert rig.ears.results("late") == []


def test_a_prompt_that_waits_for_a_model_which_goes_is_answered_that_it_is_not_served(rig: Rig) -> None:
    rig.served.swap("other", OTHER.installed, beside=True)
    with rig.served.hold("echo"):
        rig.ask("first", "a")
        rig.ask("second", "b", model="other")
        rig.ears.wait(lambda: rig.agent.waiting == 2)
        withdrawing = threading.Thread(target=rig.served.withdraw, args=("other",))
        withdrawing.start()
        rig.ears.wait(lambda: rig.served._turns._next > rig.served._turns._current + 2)
    withdrawing.join(5)
    rig.ears.wait(lambda: rig.ears.results("first") and rig.ears.results("second"))
    assert "error" not in rig.ears.results("first")[0]
    assert rig.ears.results("second")[0]["error"]["code"] == "unknown_model"


def test_a_real_model_is_swapped_under_a_stream_of_prompts_and_each_is_answered_once(tmp_path: Path) -> None:
    store, cache = ModelStore(tmp_path / "models"), tmp_path / "cache"
    old, new = (
        store.install(make_release(tmp_path / "depot", version, golden=4).path)
        for version in ("1.0.1", "1.1.0")
    )

    def load(installed: InstalledPackage):
        return load_model(installed, cache_dir=cache)

    served = ServedModels({NAME: load(old)}, load)
    rig = Rig(tmp_path, served)
    try:
        asked, longest_s = 0, 0.0
        for turn in range(8):
            for _ in range(15):
                rig.ask(f"p{asked}", "turn on the kitchen light")
                asked += 1
            target = new if turn % 2 == 0 else old
            longest_s = max(longest_s, served.swap(NAME, target, beside=turn % 4 < 2))
        names = [f"p{number}" for number in range(asked)]
        rig.ears.wait(lambda: all(rig.ears.results(name) for name in names), 60)
    finally:
        rig.agent.stop()
        rig.ears.link.stop()
    answers = [rig.ears.results(name) for name in names]
    assert {len(answer) for answer in answers} == {1}
    assert not any("error" in answer[0] for answer in answers)
    assert {str(answer[0]["receipt"]["model"]) for answer in answers} == {f"{NAME}@1.0.1", f"{NAME}@1.1.0"}
    assert longest_s < 1.0
