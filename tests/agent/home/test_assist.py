"""Assist over Wyoming, with the protocol's own client and with clients that do not speak it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wyoming")

from wyoming.asr import Transcript
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.handle import Handled, NotHandled
from wyoming.info import Describe, Info

from edgeslm.agent.home.acting import Home, Listener, Reply, read_home
from edgeslm.agent.home.assist import MAX_DATA_BYTES, MAX_LINE_BYTES, AssistServer
from edgeslm.errors import AssistError
from edgeslm.link.port import Message
from edgeslm.schema.message import ErrorBody, PromptRequest, Receipt, Result

HOME = read_home(Path(__file__).with_name("home.yaml"))
RECEIPT = Receipt(
    prompt_tokens=1, completion_tokens=1, queue_ms=0, total_ms=1, energy_j=0.1, energy_net_j=0.1, power_w=1,
    meter="estimated", model="m@1.0.0", model_sha256="0" * 64, runtime="r",
)  # fmt: skip


class Model:
    """Answers as told, on a thread of its own, as the agent does."""

    def __init__(self, answer: dict[str, Any] | str | None) -> None:
        self.answer = answer
        self.asked: list[PromptRequest] = []
        self.taken_back: list[str] = []

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        self.asked.append(request)
        if self.answer is None:
            return
        if self.answer == "busy":
            result = Result(
                id=request.id, device="d", error=ErrorBody(code="busy", message="17 prompts are waiting")
            )
        else:
            is_json = isinstance(self.answer, dict)
            text = json.dumps(self.answer) if is_json else str(self.answer)
            data = self.answer if is_json else None
            result = Result(
                id=request.id, device="d", text=text, json=data, finish_reason="stop", receipt=RECEIPT
            )
        threading.Thread(target=told, args=(result,)).start()

    def take_back(self, request_ids: Any) -> None:
        self.taken_back += request_ids


@pytest.fixture
def published() -> list[Message]:
    return []


@pytest.fixture
def model() -> Model:
    return Model({"intent": "HassTurnOn", "name": "Kettle"})


@pytest.fixture
def server(model: Model, published: list[Message]) -> Iterator[AssistServer]:
    def publish(message: Message) -> int:
        published.append(message)
        return len(published)

    listener = Listener(model, Home(HOME, publish, lambda: None), wait_s=1.0)
    server = AssistServer("127.0.0.1", 0, "kitchen-pi", lambda: ["home-command"], listener.hear)
    server.start()
    yield server
    server.stop()


def _converse(server: AssistServer, *events: Event) -> list[Event]:
    async def talk() -> list[Event]:
        answers = []
        async with AsyncTcpClient("127.0.0.1", server.port) as client:
            for event in events:
                await client.write_event(event)
                answer = await asyncio.wait_for(client.read_event(), 30)
                assert answer is not None
                answers.append(answer)
        return answers

    return asyncio.run(talk())


def test_describes_itself_as_a_program_that_handles_text(server: AssistServer) -> None:
    (answer,) = _converse(server, Describe().event())
    (program,) = Info.from_event(answer).handle
    assert program.name == "edgeslm kitchen-pi"
    assert [model.name for model in program.models] == ["home-command"]
    assert program.models[0].languages == ["en"]


def test_a_sentence_is_carried_out_and_said_so(
    server: AssistServer, model: Model, published: list[Message]
) -> None:
    (answer,) = _converse(server, Transcript("turn on the kettle", context={"conversation_id": "c1"}).event())
    handled = Handled.from_event(answer)
    assert (Handled.is_type(answer.type), handled.text) == (True, "Kitchen Kettle: on")
    assert handled.context == {"conversation_id": "c1"}
    assert [(m.topic, m.payload, m.retain) for m in published] == [("cmnd/kettle/POWER2", b"ON", False)]
    assert model.asked[0].options.priority == "high"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"intent": "HassTurnOff", "name": "Front Door"}, "Hall Front Door is not unlocked by voice here"),
        ("no json at all", "that was not understood"),
        ("busy", "17 prompts are waiting"),
        (None, "that took too long"),
    ],
)
def test_what_cannot_be_done_is_not_handled_and_nothing_is_published(
    server: AssistServer, model: Model, published: list[Message], answer: Any, said: str
) -> None:
    model.answer = answer
    (event,) = _converse(server, Transcript("do it").event())
    assert NotHandled.is_type(event.type)
    assert NotHandled.from_event(event).text == said
    assert published == []
    assert bool(model.taken_back) == (answer is None)


def test_an_empty_sentence_asks_the_model_nothing(server: AssistServer, model: Model) -> None:
    (event,) = _converse(server, Transcript("   ").event())
    assert NotHandled.is_type(event.type)
    assert model.asked == []


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"type": 5}\n',
        b'{"type": "transcript"}\n',
        b'{"type": "transcript", "data": {"text": 5}}\n',
        b'{"type": "describe", "data_length": -1}\n',
        b'{"type": "describe", "data_length": true}\n',
        b'{"type": "describe", "data_length": %d}\n' % (MAX_DATA_BYTES + 1),
        b'{"type": "describe", "payload_length": 99999999999}\n',
        b'{"type": "describe", "data_length": 3}\n[1]',
        b"[" * (MAX_LINE_BYTES - 2) + b"\n",
        b"x" * (3 * MAX_LINE_BYTES),
    ],
)
def test_who_speaks_something_else_is_let_go_of_and_keeps_nobody_waiting(
    server: AssistServer, sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.settimeout(10)
        client.sendall(sent)
        with contextlib.suppress(ConnectionError):
            assert client.recv(1000) == b""
    assert Info.from_event(_converse(server, Describe().event())[0]).handle


def test_a_port_in_use_is_one_error_that_names_it(server: AssistServer) -> None:
    second = AssistServer("127.0.0.1", server.port, "d", list, lambda _: Reply("", done=True))
    with pytest.raises(AssistError, match=f"127.0.0.1:{server.port}"):
        second.start()
    second.stop()


def test_a_broker_that_is_away_is_said_and_not_kept_for_later(model: Model) -> None:
    listener = Listener(model, Home(HOME, lambda _: None, lambda: None))
    assert listener.hear("turn on the kettle") == Reply(
        "Kettle cannot be told: the broker is away", done=False
    )


def test_without_a_map_the_answer_itself_is_the_reply(model: Model) -> None:
    model.answer = "42"
    assert Listener(model, None).hear("how much?") == Reply("42", done=True)
