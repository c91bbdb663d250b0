"""Figures of delivery: bytes over a link that drops, over a broker, and of deltas; memory to apply one.

Everything moves for real: a server of ours, a link that has a rate and drops, a broker where one is installed,
and a device process whose memory is read from the kernel. Times of the link are shortened by 60; the bytes that
pass between two drops stay what they are.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent_rig import MeasurementError
from edgeslm.delivery.blocks import MAX_DEVICES
from edgeslm.delivery.chunks import write_map
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.http_server import PackageServer, by_sha256, in_directory
from edgeslm.delivery.http_source import HttpSource
from edgeslm.delivery.mqtt_source import BlockService, MqttSource
from edgeslm.delivery.port import Blob
from edgeslm.link.broker import EmbeddedBroker, find_mosquitto
from edgeslm.link.mqtt import MqttLink
from edgeslm.link.port import Message
from edgeslm.models.delta import apply_delta, read_header
from edgeslm.models.delta_making import make_delta
from edgeslm.models.packing import pack
from edgeslm.models.store import ModelStore
from edgeslm.schema.delivery import BlobRef, DeliveryPolicy

DROPS_AFTER_S = 30.0
FASTER = 60.0
CHANGED = 0.05
MIB = 2**20

Figures = dict[str, Any]


# --- over a link that drops ---------------------------------------------------------------------------------


class DroppingLink:
    """Passes connections on at a rate, and cuts whatever is open at each drop.

    Attributes:
        sent_bytes: taken from the server and put on the link, arrived or not.
        drops: that cut something.
    """

    def __init__(self, server_url: str, bytes_per_s: float, drops_after_s: float) -> None:
        self.sent_bytes = self.drops = 0
        self._target = ("127.0.0.1", int(server_url.rsplit(":", 1)[1]))
        self._bytes_per_s = bytes_per_s
        self._drops_after_s = drops_after_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._next_drop_s = time.monotonic() + drops_after_s
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._pass_on(client)  # one device, one connection at a time

    def _pass_on(self, client: socket.socket) -> None:
        server = socket.socket()
        # As little as can be waits between the two: what is counted as sent is what the link carries.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.connect(self._target)
        for side in (client, server):
            side.setblocking(False)
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # cut, not closed
        with client, server:
            began_s, passed = time.monotonic(), 0
            while True:
                now_s = time.monotonic()
                if now_s >= self._next_drop_s:
                    self.drops += 1
                    self._next_drop_s = now_s + self._drops_after_s
                    return
                allowed = int((now_s - began_s) * self._bytes_per_s) - passed
                try:
                    asked = _some(client, 65_536)
                    server.sendall(asked)
                    data = _some(server, min(allowed, 4096)) if allowed > 0 else b""
                    passed += len(data)
                    self.sent_bytes += len(data)
                    client.setblocking(True)
                    client.sendall(data)
                    client.setblocking(False)
                except OSError:
                    return
                if not asked and not data:
                    time.sleep(0.001)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def _some(side: socket.socket, size_bytes: int) -> bytes:
    """What there is to read now.

    Raises:
        ConnectionError: the other side is gone.
    """
    try:
        data = side.recv(size_bytes)
    except BlockingIOError:
        return b""
    if not data:
        raise ConnectionError("gone")
    return data


def measure_link(quick: bool) -> Figures:
    """Bytes that a link carries for a file, as a share of the file, when it drops every 30 s.

    Two links: 100 kB/s, and 10 kB/s, over which only five blocks pass between two drops.
    """
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="edgeslm-delivery-") as name:
        for label, real_rate, size_mib in (
            ("100k", 100e3, 16 if quick else 48),
            ("10k", 10e3, 1 if quick else 5),
        ):
            blob = _published(Path(name), os.urandom(size_mib * MIB))
            share, drops = _fetch_over(Path(name), blob, real_rate * FASTER)
            figures |= {f"bytes_share_{label}": share, f"drops_{label}": drops}
    figures["bytes_share"] = max(figures["bytes_share_100k"], figures["bytes_share_10k"])
    return figures


def _published(directory: Path, data: bytes) -> BlobRef:
    path = directory / "file"
    path.write_bytes(data)
    blob = write_map(path)
    path.rename(directory / blob.sha256)
    (directory / "file.chunks").rename(directory / str(blob.chunks_sha256))
    return blob


def _fetch_over(directory: Path, blob: BlobRef, bytes_per_s: float) -> tuple[float, int]:
    policy = DeliveryPolicy(retry_s=0.05)
    with PackageServer(by_sha256(in_directory(directory))) as server:
        link = DroppingLink(server.url, bytes_per_s, DROPS_AFTER_S / FASTER)
        with closing(link), tempfile.TemporaryDirectory(dir=directory) as arriving:
            source = HttpSource(link.url)
            path = Fetcher(Path(arriving)).fetch(blob, [source], policy)
            source.close()
            if path.read_bytes() != (directory / blob.sha256).read_bytes():
                raise MeasurementError("another file arrived")
    if link.drops < 3:
        raise MeasurementError("the link hardly dropped")
    return link.sent_bytes / blob.size_bytes, link.drops


# --- over a broker ------------------------------------------------------------------------------------------


def measure_broker(quick: bool) -> Figures:
    """Bytes that a sender publishes for eight devices that pull a file at once, and what the broker holds."""
    if find_mosquitto() is None:
        raise MeasurementError("mosquitto is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="edgeslm-delivery-") as name,
        EmbeddedBroker(kind="mosquitto") as broker,
    ):
        directory = Path(name)
        blob = _published(directory, os.urandom((4 if quick else 16) * MIB))
        pull = _Pull(broker, in_directory(directory))
        began_s = time.monotonic()
        with closing(pull):
            failures = pull.fetch_all(directory, blob)
        took_s = time.monotonic() - began_s
    if failures:
        raise MeasurementError(f"{len(failures)} devices did not get the file: {failures[0]}")
    moved = MAX_DEVICES * blob.size_bytes
    return {
        "mqtt_bytes_share": pull.published_bytes / moved,
        "mqtt_under_way_mb": pull.most_under_way_bytes / 1e6,
        "mqtt_mb_per_s": moved / took_s / 1e6,
    }


class _Pull:
    """A sender and eight devices at one broker."""

    def __init__(self, broker: EmbeddedBroker, find: Callable[[str], Blob | None]) -> None:
        self.published_bytes = self.most_under_way_bytes = 0
        self._taken_bytes = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._service = BlockService(find, self._answer)
        self._sender = _linked(broker, "sender", "bench/+/fetch/+", self._requested)
        self._links = [self._sender]
        self._sources = [self._device(broker, f"d{number}") for number in range(MAX_DEVICES)]
        self._thread = threading.Thread(target=self._service.run, args=(self._stopped,), daemon=True)
        self._thread.start()

    def fetch_all(self, directory: Path, blob: BlobRef) -> list[str]:
        """Fetch the file with all devices at once; what went wrong."""
        failures: list[str] = []

        def fetch(number: int) -> None:
            try:
                Fetcher(directory / f"d{number}").fetch(blob, [self._sources[number]], DeliveryPolicy())
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=fetch, args=(number,)) for number in range(MAX_DEVICES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        for link in self._links:
            link.stop()

    def _device(self, broker: EmbeddedBroker, device: str) -> MqttSource:
        def ask(sha256: str, payload: bytes) -> None:
            link.publish(Message(f"bench/{device}/fetch/{sha256}", payload, qos=1))

        def answered(message: Message) -> None:
            with self._lock:
                self._taken_bytes += len(message.payload)
            source.offer(message.topic.split("/")[3], message.payload)

        source = MqttSource(ask, silence_s=1.0)
        link = _linked(broker, device, f"bench/{device}/blocks/+", answered)
        self._links.append(link)
        return source

    def _requested(self, message: Message) -> None:
        _, device, _, sha256 = message.topic.split("/")
        self._service.offer(device, sha256, message.payload)

    def _answer(self, device: str, sha256: str, payload: bytes) -> None:
        with self._lock:
            self.published_bytes += len(payload)
            under_way = self.published_bytes - self._taken_bytes
            self.most_under_way_bytes = max(self.most_under_way_bytes, under_way)
        self._sender.publish(Message(f"bench/{device}/blocks/{sha256}", payload, qos=0))


def _linked(broker: EmbeddedBroker, name: str, topic: str, on_message: Callable[[Message], None]) -> MqttLink:
    connected = threading.Event()

    class Events:
        def on_message(self, message: Message) -> None:
            on_message(message)

        def on_connected(self, *, session_present: bool) -> None:
            connected.set()

        def on_disconnected(self, reason: str) -> None:
            """The link comes back by itself."""

        def on_published(self, token: int) -> None:
            """Nobody waits for it."""

    link = MqttLink(broker.client_config(), name)
    link.start(Events(), [(topic, 0)])
    if not connected.wait(10):
        raise MeasurementError(f"{name} cannot connect")
    return link


# --- deltas -------------------------------------------------------------------------------------------------


def measure_delta(quick: bool) -> Figures:
    """Sizes of deltas as shares of the package, and what applying one takes on a device.

    ``delta_share`` is of a model that was trained on a little: its float weights moved so that 5 % of their int8
    values changed, which are then steps of one. ``delta_share_random`` is of 5 % new values at random, and
    ``delta_share_moved`` of the first kind in a graph whose tensors all moved.
    """
    chance = np.random.default_rng(20_26)
    count = (16 if quick else 128) * MIB
    with tempfile.TemporaryDirectory(prefix="edgeslm-delta-") as name:
        directory = Path(name)
        floats = chance.standard_normal(count, np.float32) * np.float32(28)
        old = _quantized(floats)
        # A move of mean size m (in steps) changes a share m of the rounded values.
        moved_by = chance.standard_normal(count, np.float32) * np.float32(CHANGED * np.sqrt(np.pi / 2))
        new = _quantized(floats + moved_by)
        del floats, moved_by
        other = old.copy()
        places = np.flatnonzero(chance.random(count, np.float32) < CHANGED)
        other[places] = chance.integers(-128, 128, len(places), np.int8)
        base = _package(directory, "1.0.0", old)
        kinds = {
            "": (new, b""),
            "_random": (other, b""),
            "_moved": (new, b"one more entry of the tensor table"),
        }
        figures: Figures = {"delta_changed": float((new != old).mean())}
        for number, (kind, (weights, prefix)) in enumerate(kinds.items()):
            target = _package(directory, f"2.0.{number}", weights, prefix)
            began_s = time.monotonic()
            report = make_delta(base, target, directory / f"delta{kind}")
            figures[f"delta_share{kind}"] = report.share
            figures[f"delta_make_s{kind}"] = time.monotonic() - began_s
        figures["delta_package_mb"] = base.stat().st_size / 1e6
        ModelStore(directory / "store").install(base)
        for kind in kinds:
            figures |= {f"{key}{kind}": value for key, value in _apply_in_a_process(directory, kind).items()}
    return figures


def _quantized(floats: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.int8]]:
    rounded: np.ndarray[Any, np.dtype[np.int8]] = np.clip(np.rint(floats), -127, 127).astype(np.int8)
    return rounded


def _package(
    directory: Path, version: str, weights: np.ndarray[Any, np.dtype[np.int8]], prefix: bytes = b""
) -> Path:
    graph = directory / "model.tflite"
    graph.write_bytes(b"\x1c\x00\x00\x00TFL3" + prefix + b"tensor table " * 1000 + weights.tobytes())
    tokenizer = directory / "tokenizer.json"
    tokenizer.write_text('{"model": {"vocab": {}}}')
    proof = {"tokens": [1], "greedy": [2], "logit_ids": [2], "logits": [0.5], "atol": 0.01}
    draft = {
        "format": 1, "name": "bench", "version": version, "task": "generate", "description": "Random weights",
        "graphs": [
            {"file": graph.name, "runtimes": ["litert"], "quantization": "int8 weights", "proof": proof}
        ],
        "tokenizer": {"kind": "tokenizers-json", "file": tokenizer.name},
        "context_tokens": 64, "max_prompt_tokens": 32, "max_answer_tokens": 16,
        "requires": {"ram_mb": 1, "agent": "0.1.0"}, "licenses": [{"spdx": "Apache-2.0", "of": "all"}],
    }  # fmt: skip
    out = directory / f"{version}.slm"
    pack(draft, {graph.name: graph, tokenizer.name: tokenizer}, out)
    return out


def _apply_in_a_process(directory: Path, kind: str) -> Figures:
    command = [sys.executable, "-m", "benchmarks.update_delivery", "apply", str(directory), f"delta{kind}"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        raise MeasurementError(f"applying a delta failed: {ended.stderr[-300:]}")
    found: Figures = json.loads(ended.stdout)
    return found


def _apply(directory: Path, name: str) -> Figures:
    """What a device does, in a process of its own: memory beyond what interpreter, numpy and store take."""
    base = ModelStore(directory / "store").list()[0]
    header = read_header(directory / name)
    out = directory / "rebuilt.slm"
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before_kib, began_s = _status_kib("VmRSS"), time.monotonic()
    apply_delta(directory / name, base, out, sha256=header.target_sha256, size_bytes=header.target_bytes)
    return {
        "apply_mb": (_status_kib("VmHWM") - before_kib) * 1024 / 1e6,
        "apply_s": time.monotonic() - began_s,
    }


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["apply"]:
        print(json.dumps(_apply(Path(sys.argv[2]), sys.argv[3])))
    else:
        is_quick = "--quick" in sys.argv
        for measure in (measure_link, measure_broker, measure_delta):
            print(json.dumps(measure(is_quick), indent=1))
