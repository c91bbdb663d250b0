from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeslm import topics
from edgeslm.errors import TopicError
from edgeslm.topics import POOL, ROOT, DeviceChannel, DeviceTopic, IdChannel, PoolTopic, is_publishable, parse

DEVICE_CHANNELS = get_args(DeviceChannel)
ID_CHANNELS = get_args(IdChannel)
ORDER_CHANNELS = ("prompt", "prompt/text", "cancel")

identifiers = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
devices = identifiers.filter(lambda text: text != POOL)
levels = st.text(
    st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), min_size=1, max_size=128
)
not_identifiers = st.one_of(
    st.sampled_from(["", "Kitchen", "a/b", "+", "#", "a b", "a\n", "ä", "a" * 65]),
    st.text(max_size=80).filter(lambda text: not set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")),
)

device_topics = st.builds(DeviceTopic, identifiers, devices, st.sampled_from(DEVICE_CHANNELS))
id_topics = st.builds(DeviceTopic, identifiers, devices, st.sampled_from(ID_CHANNELS), levels)
pool_topics = st.builds(PoolTopic, identifiers, identifiers)
any_topic = st.one_of(device_topics, id_topics, pool_topics)
near_topics = st.lists(
    st.one_of(
        st.sampled_from(["edgeslm", "v1", POOL, "a", "", "+", *ID_CHANNELS, *ORDER_CHANNELS, "text"]),
        identifiers,
        levels,
    ),
    max_size=7,
).map(lambda parts: "/".join([ROOT, *parts]))


def build(topic: DeviceTopic | PoolTopic) -> str:
    if isinstance(topic, PoolTopic):
        return topics.pool_topic(topic.fleet, topic.model)
    if topic.channel == "result" or topic.channel == "stream" or topic.channel == "e":
        assert topic.request_id is not None
        return topics.id_topic(topic.fleet, topic.device, topic.channel, topic.request_id)
    return topics.device_topic(topic.fleet, topic.device, topic.channel)


@given(any_topic)
@example(DeviceTopic("f", "d", "result", "text"))
@example(PoolTopic(POOL, POOL))
@example(PoolTopic("f", "prompt"))
def test_what_is_built_parses_back(topic: DeviceTopic | PoolTopic) -> None:
    parsed = parse(build(topic))
    if topic == DeviceTopic(topic.fleet, getattr(topic, "device", ""), "result", "text"):
        # The one clash of the tree: `result/text` is the answer to a plain-text prompt.
        assert parsed == DeviceTopic(topic.fleet, topic.device, "result/text")
    else:
        assert parsed == topic


@given(st.one_of(near_topics, st.text(max_size=60), any_topic.map(build)))
def test_what_parses_is_built_back(text: str) -> None:
    try:
        parsed = parse(text)
    except TopicError:
        return
    assert build(parsed) == text


@given(not_identifiers, identifiers)
def test_no_topic_is_built_of_what_is_no_identifier(bad: str, good: str) -> None:
    attempts: list[Callable[[], str]] = [
        lambda: topics.device_topic(bad, "d", "prompt"),
        lambda: topics.device_topic(good, bad, "prompt"),
        lambda: topics.id_topic(good, bad, "result", "r"),
        lambda: topics.pool_topic(bad, good),
        lambda: topics.pool_topic(good, bad),
        lambda: topics.shared_subscription(bad, "x"),
        lambda: topics.fleet_filter(bad, "info"),
        lambda: topics.stream_filter(bad, "r"),
    ]
    for attempt in attempts:
        with pytest.raises(TopicError):
            attempt()


@pytest.mark.parametrize("request_id", ["", "a/b", "+", "#", "a\0"])
def test_a_request_id_is_one_level_without_wildcards(request_id: str) -> None:
    with pytest.raises(TopicError):
        topics.id_topic("f", "d", "result", request_id)
    with pytest.raises(TopicError):
        topics.stream_filter("f", request_id)


def test_no_device_is_called_as_the_pools_are() -> None:
    with pytest.raises(TopicError):
        topics.device_topic("f", POOL, "prompt")


@given(st.builds(DeviceTopic, identifiers, devices, st.sampled_from(ORDER_CHANNELS)) | pool_topics)
def test_no_answer_may_go_where_a_device_takes_orders(topic: DeviceTopic | PoolTopic) -> None:
    assert not is_publishable(build(topic))


@given(identifiers, devices, st.sampled_from(["availability", "info"]))
def test_no_answer_may_speak_for_a_device(fleet: str, device: str, channel: str) -> None:
    assert not is_publishable(f"{ROOT}/{fleet}/{device}/{channel}")


@given(st.one_of(near_topics, st.text(max_size=60), any_topic.map(build)))
def test_where_an_answer_may_go_nobody_takes_orders(text: str) -> None:
    if not is_publishable(text):
        return
    try:
        parsed = parse(text)
    except TopicError:
        return
    assert isinstance(parsed, DeviceTopic)
    assert parsed.channel in {"result", "stream", "result/text"}


@pytest.mark.parametrize(
    "text",
    ["", "$SYS/broker", "$share/g/x", "a/+", "a/#", "a\0", "x" * (topics.MAX_TOPIC_BYTES + 1), "ä" * 600],
)
def test_no_answer_goes_to_what_is_no_plain_topic(text: str) -> None:
    assert not is_publishable(text)


@pytest.mark.parametrize("text", ["replies/me", "edgeslm-client/x/result", "x" * topics.MAX_TOPIC_BYTES])
def test_an_answer_goes_to_a_topic_of_the_askers_own(text: str) -> None:
    assert is_publishable(text)


@given(st.builds(DeviceTopic, identifiers, devices, st.just("result"), levels))
def test_an_answer_goes_to_a_result_topic(topic: DeviceTopic) -> None:
    assert is_publishable(build(topic))
