"""A conversation as a request brings it: what was said before, and what is asked now.

It begins with at most one message of the system; then user and assistant take turns, and the user has the last word.
Whether a model has a form for it is known where the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints

from edgeslm.schema.base import WireModel

MAX_MESSAGES = 256
MAX_MESSAGE_CHARS = 32_768

Role = Literal["system", "user", "assistant"]


class RequestMessage(WireModel):
    """One message of a conversation.

    Attributes:
        role: who says it: ``system`` states how to answer, ``user`` asks, ``assistant`` answered.
        content: the text.
    """

    role: Role
    content: Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS)]


Messages = Annotated[tuple[RequestMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES, strict=False)]

MessagesT = TypeVar("MessagesT", bound=Sequence[RequestMessage])


def check_order(messages: MessagesT) -> MessagesT:
    """`messages`, which are a conversation that an answer can follow.

    Raises:
        ValueError: one says nothing, or comes where none of its role can be.
    """
    turns = messages[1:] if messages[0].role == "system" else messages
    before = len(messages) - len(turns)
    for number, message in enumerate(messages, start=1):
        if not message.content.strip():
            raise ValueError(f"message {number}, of the {message.role}, is empty")
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise ValueError(
                f"message {before + number + 1} is of the {message.role}, expected is one of the {expected}: at most"
                " one message of the system comes first, then user and assistant take turns"
            )
    if not turns or turns[-1].role != "user":
        raise ValueError(f"the last message is of the {messages[-1].role}, expected is one of the user")
    return messages
