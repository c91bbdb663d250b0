"""What the contract suite needs of each way to carry messages, and a proxy that breaks TCP on purpose."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edgeslm.link.broker import EmbeddedBroker
from edgeslm.link.inprocess import InProcessBroker, InProcessLink
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Link, Message

WAIT_S = 8.0


def wait_for(is_met: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not is_met():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


class Recorder:
    """Link events, written down."""

    def __init__(self, *, acknowledges: bool = True) -> None:
        self.acknowledges = acknowledges
        self.messages: list[Message] = []
        self.sessions: list[bool] = []
        self.reasons: list[str] = []
        self.published: list[int] = []
        self.order: list[str] = []
        self.raises = False

    def on_message(self, message: Message) -> None:
        self.messages.append(message)
        self.order.append("message")
        if self.raises:
            raise RuntimeError("a handler with a fault")
        if self.acknowledges:
            message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        self.sessions.append(session_present)
        self.order.append("connected")

    def on_disconnected(self, reason: str) -> None:
        self.reasons.append(reason)
        self.order.append("disconnected")

    def on_published(self, token: int) -> None:
        self.published.append(token)

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


class Proxy:
    """A TCP hop that can be cut, restored, or made a black hole."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.is_cut = False
        self.is_hole = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self.is_cut = True
        for pair in list(self._pairs):
            self._drop(pair)

    def restore(self) -> None:
        self.is_cut = self.is_hole = False

    def close(self) -> None:
        self._is_over = True
        self.cut()
        self._thread.join(2)
        self._listener.close()

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for sock in pair:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._is_over:
            sockets = [self._listener, *(sock for pair in self._pairs for sock in pair)]
            readable, _, _ = select.select(sockets, [], [], 0.05)
            if self._listener in readable:
                self._accept()
            for pair in list(self._pairs):
                for source, target in (pair, pair[::-1]):
                    if source in readable and not self._forward(source, target):
                        self._forget(pair)
                        break

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self.is_cut:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((near, far))

    def _forward(self, source: socket.socket, target: socket.socket) -> bool:
        try:
            data = source.recv(262_144)
            if data and not self.is_hole:
                target.sendall(data)
        except OSError:
            return False
        return bool(data)

    def _forget(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.remove(pair)
        for sock in pair:
            sock.close()


class Harness(Protocol):
    """One way to carry messages."""

    name: str

    def link(
        self, client_id: str, will: Message | None = None, *, session_expiry_s: int = 86_400
    ) -> Link: ...

    def cut(self, link: Link) -> None: ...

    def restore(self, link: Link) -> None: ...

    def kill(self, link: Link) -> None: ...

    def close(self) -> None: ...


class MqttHarness:
    """MqttLink to a real broker, each link through a proxy of its own."""

    def __init__(self, broker: EmbeddedBroker, protocol: str) -> None:
        self.name = f"{broker.kind}-{protocol}"
        self.broker = broker
        self.config = broker.client_config("5" if protocol == "5" else "3.1.1")
        self.proxies: dict[int, Proxy] = {}
        self._links: list[MqttLink] = []

    def link(
        self, client_id: str, will: Message | None = None, *, session_expiry_s: int = 86_400
    ) -> MqttLink:
        proxy = Proxy(self.config.port)
        update = {"port": proxy.port, "session_expiry_s": session_expiry_s}
        link = MqttLink(self.config.model_copy(update=update), client_id, will)
        self.proxies[id(link)] = proxy
        self._links.append(link)
        return link

    def cut(self, link: Link) -> None:
        self.proxies[id(link)].cut()

    def restore(self, link: Link) -> None:
        self.proxies[id(link)].restore()

    def hole(self, link: Link) -> None:
        self.proxies[id(link)].is_hole = True

    def kill(self, link: Link) -> None:
        self.proxies[id(link)].cut()
        link.stop()

    def close(self) -> None:
        for link in self._links:
            link.stop()
        for proxy in self.proxies.values():
            proxy.close()


class InProcessHarness:
    """The in-process broker."""

    name = "inprocess"

    def __init__(self) -> None:
        self.broker = InProcessBroker()
        self._links: list[InProcessLink] = []

    def link(
        self, client_id: str, will: Message | None = None, *, session_expiry_s: int = 86_400
    ) -> InProcessLink:
        link = InProcessLink(self.broker, client_id, will, session_expiry_s=session_expiry_s)
        self._links.append(link)
        return link

    def cut(self, link: Link) -> None:
        _ = link
        self.broker.cut()

    def restore(self, link: Link) -> None:
        _ = link
        self.broker.restore()

    def hole(self, link: Link) -> None:
        _ = link
        self.broker.swallow()

    def kill(self, link: Link) -> None:
        assert isinstance(link, InProcessLink)
        link.drop()

    def close(self) -> None:
        for link in self._links:
            link.stop()


def started(link: Link, filters: Sequence[tuple[str, int]] = (), *, acknowledges: bool = True) -> Recorder:
    """`link`, started and connected."""
    recorder = Recorder(acknowledges=acknowledges)
    link.start(recorder, filters)
    assert wait_for(lambda: bool(recorder.sessions)), recorder.reasons
    return recorder
