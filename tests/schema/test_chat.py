"""Messages of a request are a conversation that an answer can follow, or are refused by name."""

import json

import pytest

from edgeslm import codec
from edgeslm.errors import CodecError
from edgeslm.schema.chat import MAX_MESSAGES
from edgeslm.schema.message import PromptRequest

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def said(order, text="x"):
    return [{"role": ROLES[role], "content": text} for role in order]


def read(**fields):
    return codec.decode(PromptRequest, json.dumps({"id": "q", **fields}).encode())


@pytest.mark.parametrize("order", ["u", "su", "uau", "suauau"])
def test_a_conversation_that_ends_with_the_user_is_taken(order):
    request = read(messages=said(order))
    assert [message.role for message in request.messages] == [ROLES[role] for role in order]
    assert PromptRequest.model_validate_json(request.model_dump_json(exclude_none=True)) == request


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": said("s")}, "last message is of the system"),
        ({"messages": said("ua")}, "last message is of the assistant"),
        ({"messages": said("au")}, "message 1 is of the assistant, expected is one of the user"),
        ({"messages": said("uu")}, "message 2 is of the user, expected is one of the assistant"),
        ({"messages": said("usu")}, "message 2 is of the system"),
        ({"messages": said("ssu")}, "message 2 is of the system"),
        ({"messages": said("uau", " \n")}, "message 1, of the user, is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": "on"}, "messages"),
        ({"messages": said("u", "x" * 32_769)}, "messages"),
        ({"messages": said("ua" * (MAX_MESSAGES // 2) + "u")}, "messages"),
        ({"messages": said("u"), "prompt": "x"}, "contradict each other"),
        ({"messages": said("u"), "inputs": ["x"]}, "contradict each other"),
        ({"messages": said("u"), "tensor": {"x": [1]}, "task": "tensor"}, "contradict each other"),
        ({"messages": said("u"), "task": "classify"}, "messages go with task 'generate'"),
        ({"messages": said("u"), "session": "a"}, "option 'session' goes with a prompt"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(fields, told):
    with pytest.raises(CodecError, match=told):
        read(**fields)


def test_messages_are_part_of_what_an_id_stands_for():
    one = read(messages=said("sua" + "u"))
    assert one.asks_as(read(messages=said("sua" + "u"), max_tokens=3))
    assert not one.asks_as(read(messages=said("uau")))
    assert not one.asks_as(read(prompt="x"))
