from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeslm import topics
from edgeslm.errors import TopicError
from edgeslm.topics import (
    POOL,
    RESERVED_NAMES,
    ROOT,
    CommandTopic,
    DeviceChannel,
    DeviceTopic,
    EnrolChannel,
    EnrolTopic,
    IdChannel,
    PoolTopic,
    is_publishable,
    parse,
)

DEVICE_CHANNELS = get_args(DeviceChannel)
ID_CHANNELS = get_args(IdChannel)
ORDER_CHANNELS = ("prompt", "prompt/text", "cancel", "desired", "certificate")
Topic = DeviceTopic | CommandTopic | PoolTopic | EnrolTopic

identifiers = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
devices = identifiers.filter(lambda text: text not in RESERVED_NAMES)
levels = st.text(
    st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), min_size=1, max_size=128
)
not_identifiers = st.one_of(
    st.sampled_from(["", "Kitchen", "a/b", "+", "#", "a b", "a\n", "ä", "a" * 65]),
    st.text(max_size=80).filter(lambda text: not set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")),
)

device_topics = st.builds(DeviceTopic, identifiers, devices, st.sampled_from(DEVICE_CHANNELS))
id_topics = st.builds(DeviceTopic, identifiers, devices, st.sampled_from(ID_CHANNELS), levels)
command_topics = st.builds(CommandTopic, identifiers, devices, identifiers, levels)
pool_topics = st.builds(PoolTopic, identifiers, identifiers)
enrol_topics = st.builds(EnrolTopic, identifiers, identifiers, st.sampled_from(get_args(EnrolChannel)))
any_topic = st.one_of(device_topics, id_topics, command_topics, pool_topics, enrol_topics)
near_topics = st.lists(
    st.one_of(
        st.sampled_from(
            ["edgeslm", "v1", *RESERVED_NAMES, "a", "", "+", *ID_CHANNELS, *ORDER_CHANNELS, "text", "cmd"]
        ),
        st.sampled_from(get_args(EnrolChannel)),
        identifiers,
        levels,
    ),
    max_size=7,
).map(lambda parts: "/".join([ROOT, *parts]))


def build(topic: Topic) -> str:
    if isinstance(topic, PoolTopic):
        return topics.pool_topic(topic.fleet, topic.model)
    if isinstance(topic, CommandTopic):
        return topics.command_topic(topic.fleet, topic.device, topic.op, topic.command_id)
    if isinstance(topic, EnrolTopic):
        return topics.enrol_topic(topic.fleet, topic.claim, topic.channel)
    if topic.channel in get_args(IdChannel):
        assert topic.request_id is not None
        return topics.id_topic(topic.fleet, topic.device, topic.channel, topic.request_id)
    return topics.device_topic(topic.fleet, topic.device, topic.channel)


@given(any_topic)
@example(DeviceTopic("f", "d", "result", "text"))
@example(PoolTopic(POOL, POOL))
@example(PoolTopic("f", "prompt"))
@example(CommandTopic("f", "d", "result", "text"))
@example(EnrolTopic("f", POOL, "request"))
def test_what_is_built_parses_back(topic: Topic) -> None:
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
        lambda: topics.command_topic(bad, "d", "bench", "1"),
        lambda: topics.command_topic("f", "d", bad, "1"),
        lambda: topics.enrol_topic(bad, good, "request"),
        lambda: topics.enrol_topic(good, bad, "request"),
        lambda: topics.device_user(bad, "d"),
        lambda: topics.device_user("f", bad),
        lambda: topics.claim_user("f", bad),
        lambda: topics.shared_subscription(bad, "x"),
        lambda: topics.fleet_filter(bad, "info"),
        lambda: topics.stream_filter(bad, "r"),
        lambda: topics.command_filter(bad, "d"),
        lambda: topics.command_filter("f", bad),
        lambda: topics.commands_filter(bad, "bench", "1"),
        lambda: topics.commands_filter("f", bad, "1"),
        lambda: topics.event_filter(bad, "operation"),
        lambda: topics.enrol_filter(bad),
        lambda: topics.device_access(bad),
        lambda: topics.operator_access(bad),
        lambda: topics.door_access(bad),
        lambda: topics.pool_filter(bad),
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
    with pytest.raises(TopicError):
        topics.command_topic("f", "d", "bench", request_id)
    with pytest.raises(TopicError):
        topics.commands_filter("f", "bench", request_id)
    with pytest.raises(TopicError):
        topics.event_filter("f", request_id)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_no_device_is_called_as_another_part_of_the_tree(name: str) -> None:
    with pytest.raises(TopicError):
        topics.device_topic("f", name, "prompt")
    with pytest.raises(TopicError):
        topics.device_user("f", name)


@given(
    st.builds(DeviceTopic, identifiers, devices, st.sampled_from(ORDER_CHANNELS))
    | command_topics
    | pool_topics
    | enrol_topics
)
def test_no_answer_may_go_where_a_device_takes_orders(topic: Topic) -> None:
    assert not is_publishable(build(topic))


def _falls_under(topic: str, filters: tuple[str, ...]) -> bool:
    def fits(one: str) -> bool:
        wanted, levels = one.split("/"), topic.split("/")
        return len(wanted) == len(levels) and all(
            want in ("+", level) for want, level in zip(wanted, levels, strict=True)
        )

    return any(fits(one) for one in filters)


@given(command_topics)
def test_commands_and_what_answers_them_are_found_by_their_filters(topic: CommandTopic) -> None:
    text = build(topic)
    assert _falls_under(text, (topics.command_filter(topic.fleet, topic.device),))
    assert _falls_under(text, (topics.commands_filter(topic.fleet, topic.op, topic.command_id),))
    answer = topics.id_topic(topic.fleet, topic.device, "e", topics.OPERATION_EVENT)
    assert _falls_under(answer, (topics.event_filter(topic.fleet, topics.OPERATION_EVENT),))


@given(st.one_of(device_topics, id_topics, command_topics))
def test_a_device_may_either_read_or_write_each_topic_of_its_own(topic: DeviceTopic | CommandTopic) -> None:
    access = topics.device_access(topic.fleet, topics.device_user(topic.fleet, topic.device))
    text = build(topic)
    assert _falls_under(text, access.reads) != _falls_under(text, access.writes)
    is_order = isinstance(topic, CommandTopic) or topic.channel in (*ORDER_CHANNELS, "blocks")
    assert _falls_under(text, access.reads) == is_order


@given(st.one_of(device_topics, id_topics, command_topics, enrol_topics), identifiers, devices)
def test_a_device_may_touch_no_topic_of_another(topic: Topic, fleet: str, device: str) -> None:
    if (topic.fleet, getattr(topic, "device", None)) == (fleet, device):
        return
    access = topics.device_access(fleet, topics.device_user(fleet, device))
    assert not _falls_under(build(topic), (*access.reads, *access.writes))


@given(identifiers, devices, identifiers, devices)
def test_a_device_may_show_itself_and_no_other_to_home_assistant(
    fleet: str, device: str, other_fleet: str, other: str
) -> None:
    access = topics.device_access(fleet, topics.device_user(fleet, device))
    is_own = (fleet, device) == (other_fleet, other)
    assert _falls_under(topics.discovery_topic(other_fleet, other), access.writes) == is_own
    assert not _falls_under(topics.discovery_topic(other_fleet, other), access.reads)
    assert _falls_under(topics.birth_topic(), access.reads)
    assert not _falls_under(topics.birth_topic(), access.writes)


@given(any_topic, identifiers)
def test_home_assistant_gives_no_orders_but_its_own(topic: Topic, fleet: str) -> None:
    access = topics.home_assistant_access(fleet)
    if _falls_under(build(topic), access.writes):
        is_order = isinstance(topic, CommandTopic) and topic.op in topics.HOME_ASSISTANT_ORDERS
        is_prompt = isinstance(topic, DeviceTopic) and topic.channel == "prompt"
        assert topic.fleet == fleet
        assert is_order or is_prompt


@given(any_topic, identifiers, identifiers)
def test_a_claim_opens_its_own_two_topics_only(topic: Topic, fleet: str, claim: str) -> None:
    access = topics.claim_access(topics.claim_user(fleet, claim))
    if _falls_under(build(topic), access.reads):
        assert topic == EnrolTopic(fleet, claim, "reply")
    if _falls_under(build(topic), access.writes):
        assert topic == EnrolTopic(fleet, claim, "request")


def test_what_is_retained_of_a_device_is_its_own() -> None:
    for topic in topics.retained_topics("f", "d"):
        parsed = parse(topic)
        assert isinstance(parsed, DeviceTopic)
        assert (parsed.fleet, parsed.device) == ("f", "d")


@given(identifiers, devices, st.sampled_from(["availability", "info", "reported", "identity"]))
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
