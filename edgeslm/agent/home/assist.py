"""The device as a conversation agent: the part of the Wyoming protocol that handles what people said.

A client asks ``describe`` and is told of one program that handles text; it sends ``transcript`` and is told ``handled``
or ``not-handled``. What always holds: frames are read here, with a limit on every length, since the package's own
reader has none; a client that speaks something else, or is silent for too long, is let go of, and never kept from the
others.

Needs the package ``wyoming`` (extra ``wyoming``). Source: github.com/rhasspy/wyoming, README, "Format" and "Event
Types".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from wyoming.asr import Transcript
from wyoming.event import Event, async_write_event
from wyoming.handle import Handled, NotHandled
from wyoming.info import Attribution, Describe, HandleModel, HandleProgram, Info
from wyoming.ping import Ping, Pong

import edgeslm
from edgeslm.agent.home.acting import Reply
from edgeslm.errors import AssistError

log = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 16_384
MAX_DATA_BYTES: Final = 65_536
MAX_CLIENTS: Final = 16
SILENT_S: Final = 300.0
_START_S: Final = 10.0

Hear = Callable[[str], Reply]


class AssistServer:
    """Serves Assist on one port, on a thread of its own. It lives once: start, then stop."""

    def __init__(
        self, host: str, port: int, device: str, models: Callable[[], Sequence[str]], hear: Hear
    ) -> None:
        """Take where to listen, and who understands.

        Args:
            port: 0 takes a free one.
            device: its name.
            models: names of those that answer, the default first.
            hear: called on a thread that may wait.
        """
        self._host = host
        self._port = port
        self._device = device
        self._models = models
        self._hear = hear
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._fault: OSError | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeslm-assist", daemon=True)
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that is open."""
        return self._port

    def start(self) -> None:
        """Open the port.

        Raises:
            AssistError: it cannot be opened.
        """
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise AssistError(f"{self._host}:{self._port} is not open after {_START_S:g} s")
        if self._fault is not None:
            raise AssistError(
                f"cannot listen on {self._host}:{self._port}: {self._fault.strerror}",
                hint="Set homeassistant.wyoming_port to a free one",
            ) from self._fault

    def stop(self) -> None:
        """Close the port and let go of everybody. Idempotent."""
        loop, ending = self._loop, self._ending
        if loop is not None and ending is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(ending.set)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        hearing = ThreadPoolExecutor(4, thread_name_prefix="edgeslm-hear")
        try:
            server = await asyncio.start_server(
                lambda reader, writer: self._take(reader, writer, hearing),
                self._host,
                self._port,
                limit=MAX_LINE_BYTES,
            )
        except OSError as error:
            self._fault = error
            hearing.shutdown(wait=False)
            return
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        log.info("Assist is served on %s:%d", self._host, self._port)
        await self._ending.wait()
        server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        hearing.shutdown(wait=False, cancel_futures=True)

    def _take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hearing: ThreadPoolExecutor
    ) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            log.warning("a client of Assist is turned away: %d are there", len(self._clients))
            writer.close()
            return
        task = asyncio.ensure_future(self._converse(reader, writer, hearing))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hearing: ThreadPoolExecutor
    ) -> None:
        try:
            while (event := await asyncio.wait_for(read_event(reader), SILENT_S)) is not None:
                reply = await self._reply(event, hearing)
                if reply is not None:
                    await async_write_event(reply, writer)
        except AssistError as error:
            log.warning("a client of Assist is let go of: %s", error)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # it is gone, or as good as
        finally:
            writer.close()

    async def _reply(self, event: Event, hearing: ThreadPoolExecutor) -> Event | None:
        if Describe.is_type(event.type):
            return self._info().event()
        if Ping.is_type(event.type):
            return Pong(text=_text(event, "text", needed=False)).event()
        if not Transcript.is_type(event.type):
            return None  # sound, for example, which is nothing to us
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(hearing, self._heard, _text(event, "text") or "")
        context = event.data.get("context")
        kept = context if isinstance(context, dict) else None
        said = Handled if reply.done else NotHandled
        return said(text=reply.text, context=kept).event()

    def _heard(self, sentence: str) -> Reply:
        try:
            return self._hear(sentence)
        except Exception:  # whatever one sentence does, the next one is heard
            log.exception("a sentence failed")
            return Reply("something went wrong on the device", done=False)

    def _info(self) -> Info:
        by = Attribution(name="edgeslm", url="")
        version = edgeslm.__version__
        models = [
            HandleModel(
                name=name,
                attribution=by,
                installed=True,
                description=f"{name} on {self._device}",
                version=version,
                languages=["en"],
            )
            for name in self._models()[:1]
        ]
        program = HandleProgram(
            name=f"edgeslm {self._device}",
            attribution=by,
            installed=True,
            description="A small model on a board of your own",
            version=version,
            models=models,
        )
        return Info(handle=[program])


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """The next event; ``None`` at the end.

    Raises:
        AssistError: what comes is no event, or too long.
        asyncio.IncompleteReadError: the client left within one.
    """
    try:
        line = await reader.readline()
    except ValueError as error:
        raise AssistError(f"a line of more than {MAX_LINE_BYTES} bytes") from error
    if not line:
        return None
    header = _object(line)
    kind = header.get("type")
    if not isinstance(kind, str):
        raise AssistError("an event without a type")
    data = header.get("data")
    fields: dict[str, Any] = dict(data) if isinstance(data, dict) else {}
    if length := _length(header, "data_length"):
        fields |= _object(await reader.readexactly(length))
    payload = await reader.readexactly(length) if (length := _length(header, "payload_length")) else None
    return Event(type=kind, data=fields, payload=payload)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AssistError("an event that is no JSON") from error
    if not isinstance(found, dict):
        raise AssistError("an event that is no JSON object")
    return found


def _length(header: dict[str, Any], name: str) -> int:
    length = header.get(name)
    if length is None:
        return 0
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= MAX_DATA_BYTES:
        raise AssistError(f"{name} has to be from 0 to {MAX_DATA_BYTES}")
    return length


def _text(event: Event, name: str, *, needed: bool = True) -> str | None:
    text = event.data.get(name)
    if text is None and not needed:
        return None
    if not isinstance(text, str):
        raise AssistError(f"{event.type} without {name}")
    return text
