from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeslm.link.broker import EmbeddedBroker, accepts_mqtt, find_mosquitto

# pytest's importlib mode leaves sys.path alone, and what the tests of this folder share is no test module.
sys.path.insert(0, str(Path(__file__).parent))

from link_harness import InProcessHarness, MqttHarness

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
KINDS = [
    pytest.param("inprocess"),
    pytest.param("iotcore/5"),
    pytest.param("iotcore/3.1.1"),
    pytest.param("mosquitto/5", marks=NEEDS_MOSQUITTO),
    pytest.param("mosquitto/3.1.1", marks=NEEDS_MOSQUITTO),
]


@pytest.fixture(scope="session")
def iotcore() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="iotcore") as broker:
        yield broker


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind="mosquitto") as broker:
        yield broker


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest) -> Iterator[InProcessHarness | MqttHarness]:
    """Every way to carry messages."""
    kind, _, protocol = request.param.partition("/")
    is_real = kind != "inprocess"
    if is_real and not accepts_mqtt(request.getfixturevalue(kind).port):
        # A broker limitation of iotcore, see edgeslm/link/broker.py: cutting a connection at the wrong moment
        # may end it. One test may suffer, not all that follow.
        request.getfixturevalue(kind).restart()
    made = MqttHarness(request.getfixturevalue(kind), protocol) if is_real else InProcessHarness()
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """A name that no other test uses: brokers are shared."""
    return f"t{uuid.uuid4().hex[:10]}"
