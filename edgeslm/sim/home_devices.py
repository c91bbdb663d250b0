"""The simulated home over MQTT: devices that take orders, and the controller that gives them.

The tree, of which this module is the sole owner (it is no part of ``edgeslm/v1``)::

    home/<device-id>/set     a JSON object of the fields to change; ``null`` takes one away
    home/<device-id>/state   retained: the whole state

What always holds: devices and controller share nothing but the broker, so what a person sees with
``mosquitto_sub -t 'home/#'`` is all there is. A device changes by valid ``set`` messages alone and answers
each with its state; a bad one is logged and answered with the state as it was. The controller's view of the
home is what the devices said last.

Handlers do their work in the link's thread: it is pure, takes microseconds, and publishing never blocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from pydantic import JsonValue, TypeAdapter, ValidationError

from edgeslm import codec
from edgeslm.errors import CodecError, LinkError
from edgeslm.link.port import Link, Message
from edgeslm.sim.home import Device, Home, State
from edgeslm.sim.home_intents import Outcome, apply

_LOG = logging.getLogger(__name__)

ROOT = "home"
MAX_SET_BYTES = 65_536
SET_EXPIRY_S = 10
"""Nobody wants a lamp to go on an hour after it was asked to."""
CONFIRM_TIMEOUT_S = 5.0
_FIELDS: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


def topic_of(device_id: str, channel: Literal["set", "state"]) -> str:
    """The topic of a simulated device."""
    return f"{ROOT}/{device_id}/{channel}"


def device_of(topic: str) -> str | None:
    """The id of the device that `topic` is about; ``None`` if it is none of ours."""
    levels = topic.split("/")
    return levels[1] if len(levels) == 3 and levels[0] == ROOT and levels[2] in {"set", "state"} else None


class SimulatedDevices:
    """All devices of a home as one client of the broker. It lives once: start, then stop."""

    def __init__(self, link: Link, home: Home) -> None:
        self._link = link
        self._home = home

    def start(self) -> None:
        """Connect in the background; each state is published as soon as there is a connection.

        Raises:
            LinkError: the link cannot be set up.
        """
        self._link.start(self, [(topic_of("+", "set"), 1)])

    def stop(self) -> None:
        """Disconnect. Idempotent."""
        self._link.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def home(self) -> Home:
        """The home as it is now."""
        return self._home

    def on_connected(self, *, session_present: bool) -> None:
        """Say how everything is: the broker may be a new one."""
        del session_present
        for device in self._home.devices:
            self._publish(device)

    def on_disconnected(self, reason: str) -> None:
        """Nothing: the link comes back, and then every state is published."""

    def on_published(self, token: int) -> None:
        """Nothing: the next state replaces a lost one."""

    def on_message(self, message: Message) -> None:
        """Carry out a ``set`` and say how the device is afterwards."""
        message.acknowledge()
        device = self._home.by_id.get(device_of(message.topic) or "")
        if device is None:
            _LOG.warning("no device listens on %s", message.topic[:120])
            return
        try:
            device = device.changed(_read_fields(message.payload))
        except ValidationError as error:
            _LOG.warning("%s is left as it is: %s", device.id, codec.describe(error))
        except CodecError as error:
            _LOG.warning("%s is left as it is: %s", device.id, error)
        self._home = self._home.replaced([device])
        self._publish(device)

    def _publish(self, device: Device) -> None:
        self._link.publish(Message(topic_of(device.id, "state"), codec.encode(device.state), retain=True))


def _read_fields(body: bytes) -> dict[str, JsonValue]:
    if len(body) > MAX_SET_BYTES:
        raise CodecError(f"body of {len(body)} bytes, at most {MAX_SET_BYTES} are taken")
    return _FIELDS.validate_json(body)


class HomeController:
    """Turns answers into ``set`` messages and waits until the devices confirm. It lives once."""

    def __init__(self, link: Link, home: Home) -> None:
        """Take a link, not started yet, and which devices there are; they tell their states themselves."""
        self._link = link
        self._home = home
        self._heard: set[str] = set()
        self._changed = threading.Condition()

    def connect(self, timeout_s: float = 10.0) -> Self:
        """Connect, and wait until every device has said how it is.

        Raises:
            LinkError: they have not within `timeout_s`.
        """
        self._link.start(self, [(topic_of("+", "state"), 1)])
        if not self._wait(lambda: len(self._heard) == len(self._home.devices), timeout_s):
            self._link.stop()
            silent = sorted(device.id for device in self._home.devices if device.id not in self._heard)
            raise LinkError(
                f"{len(silent)} simulated devices are silent after {timeout_s:g} s: {silent[0]} ..."
            )
        return self

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._link.stop()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def home(self) -> Home:
        """The home as the devices last said."""
        with self._changed:
            return self._home

    def act(
        self, answer: Mapping[str, object], now: datetime | None = None, timeout_s: float = CONFIRM_TIMEOUT_S
    ) -> Outcome:
        """Do what `answer` says and wait until the devices confirm it.

        Args:
            answer: an intent and its slots, not trusted.
            now: for questions about the time.
            timeout_s: seconds to wait for the devices.

        Raises:
            LinkError: not connected, or a device did not confirm.
        """
        outcome = apply(self.home, answer, now)
        wanted = {change.after.id: change.after.state for change in outcome.changes}
        for change in outcome.changes:
            message = Message(
                topic_of(change.after.id, "set"), _FIELDS.dump_json(change.fields), expiry_s=SET_EXPIRY_S
            )
            if self._link.publish(message) is None:
                raise LinkError(f"{change.after.id} cannot be set: not connected to the broker")
        if not self._wait(lambda: not self._unconfirmed(wanted), timeout_s):
            with self._changed:
                late = self._unconfirmed(wanted)
            raise LinkError(f"no confirmation within {timeout_s:g} s from: {', '.join(late)}")
        return outcome

    def on_connected(self, *, session_present: bool) -> None:
        """Nothing: the broker sends the retained states."""

    def on_disconnected(self, reason: str) -> None:
        """Nothing: whoever waits gets its error in time."""

    def on_published(self, token: int) -> None:
        """Nothing: only a device's state confirms."""

    def on_message(self, message: Message) -> None:
        """Note a device's state."""
        message.acknowledge()
        with self._changed:
            device = self._home.by_id.get(device_of(message.topic) or "")
            if device is None:
                return
            try:
                state = codec.decode(State, message.payload, max_bytes=MAX_SET_BYTES)
                said = Device.model_validate({**dict(device), "state": state})
            except (CodecError, ValidationError):
                _LOG.warning("%s says what is no state of it", device.id)
                return
            self._home = self._home.replaced([said])
            self._heard.add(device.id)
            self._changed.notify_all()

    def _unconfirmed(self, wanted: Mapping[str, State]) -> list[str]:
        return [name for name, state in wanted.items() if self._home.by_id[name].state != state]

    def _wait(self, is_met: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(is_met, max(0.0, deadline_s - time.monotonic()))
