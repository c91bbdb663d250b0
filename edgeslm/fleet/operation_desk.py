"""The operator at the broker while devices are asked to do something: what is posted arrives, what is said is read.

What always holds: hostile or foreign messages are logged and dropped; see :class:`BrokerLine` for the rest.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from edgeslm import codec, topics
from edgeslm.errors import CodecError, TopicError
from edgeslm.fleet.broker_line import BrokerLine
from edgeslm.link.port import Message
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.message import MAX_BODY_BYTES, Availability
from edgeslm.schema.operation import OperationEvent

_LOG = logging.getLogger(__name__)

_QUIET_S = 1.0
_FEW = 50
"""Devices that are listened to one by one; of more than that the whole fleet is heard."""

Said = OperationEvent | Availability


class Desk(BrokerLine):
    """The operator at the broker; used as a context manager it is connected inside. One thread uses it."""

    def __init__(
        self, config: BrokerConfig, fleet: str, devices: Sequence[str], more: Sequence[str] = ()
    ) -> None:
        """Set up.

        Args:
            devices: that are listened to.
            more: other filters.
        """
        self.fleet = fleet
        kind = topics.OPERATION_EVENT
        if len(devices) > _FEW:
            filters = [topics.event_filter(fleet, kind), topics.fleet_filter(fleet, "availability")]
        else:
            filters = [topics.id_topic(fleet, device, "e", kind) for device in devices]
            filters += [topics.device_topic(fleet, device, "availability") for device in devices]
        super().__init__(config, f"edgeslm-exec-{secrets.token_hex(6)}", (*filters, *more))

    def deliver(self, timeout_s: float) -> None:
        """Wait until the broker has everything that was posted.

        Raises:
            LinkError: it does not take it in time.
        """
        if not self.flush(timeout_s):
            raise self._fault(f"does not confirm: {self._reason}")

    def said(self, timeout_s: float) -> tuple[bool, list[tuple[str, Said]]]:
        """What devices said, after at most `timeout_s`; and whether the connection was lost meanwhile."""
        heard = self.hear(timeout_s)
        read = (self._read(message) for message in heard.messages)
        return heard.was_away, [one for one in read if one is not None]

    def kept_commands(self, op: str, command_id: str, devices: Sequence[str]) -> dict[str, bytes]:
        """The commands that the broker keeps, by device."""
        found: dict[str, bytes] = {}
        while True:
            heard = self.hear(_QUIET_S)
            if not heard.messages:
                return dict(sorted(found.items()))
            for message in heard.messages:
                try:
                    topic = topics.parse(message.topic)
                except TopicError:
                    continue
                if (
                    isinstance(topic, topics.CommandTopic)
                    and (topic.op, topic.command_id) == (op, command_id)
                    and (not devices or topic.device in devices)
                    and message.payload
                ):
                    found[topic.device] = message.payload

    def _read(self, message: Message) -> tuple[str, Said] | None:
        """A message of a device; ``None`` for what is none."""
        try:
            topic = topics.parse(message.topic)
            if not isinstance(topic, topics.DeviceTopic):
                return None
            if topic.channel == "availability":
                if not message.payload:
                    return None
                return topic.device, codec.decode(Availability, message.payload, max_bytes=MAX_BODY_BYTES)
            return topic.device, codec.decode(OperationEvent, message.payload, max_bytes=MAX_BODY_BYTES)
        except (CodecError, TopicError) as error:
            _LOG.warning("a message on %s is dropped: %s", message.topic[:120], error)
            return None
