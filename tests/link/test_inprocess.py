from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from link_harness import Recorder, started, wait_for
from paho.mqtt.client import topic_matches_sub

from edgeslm.link.inprocess import InProcessBroker, InProcessLink, matches
from edgeslm.link.port import Message

levels = st.sampled_from(["", "a", "b", "$SYS", "a b"])
topics = st.lists(levels, min_size=1, max_size=5).map("/".join).filter(bool)
filters = (
    st.tuples(st.lists(st.one_of(levels, st.just("+")), max_size=5), st.sampled_from([[], ["#"]]))
    .map(lambda parts: "/".join(parts[0] + parts[1]))
    .filter(bool)
)


@given(filters, topics)
def test_filters_match_as_paho_says(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


def test_an_outage_takes_everybody_and_their_wills_wait_for_those_who_return() -> None:
    broker = InProcessBroker()
    device = InProcessLink(broker, "device", Message("device/availability", b"offline", retain=True))
    watcher = InProcessLink(broker, "watcher")
    started(device)
    got = started(watcher, [("device/availability", 1)])
    broker.cut()
    late = Recorder()
    InProcessLink(broker, "late").start(late, [("device/availability", 1)])
    assert got.messages == []
    broker.restore()
    assert wait_for(lambda: b"offline" in got.payloads() and late.payloads() == [b"offline"])
    kept = broker.retained("device/availability")
    assert kept is not None
    assert kept.payload == b"offline"


def test_what_is_swallowed_is_neither_routed_nor_confirmed() -> None:
    broker = InProcessBroker()
    link = InProcessLink(broker, "one")
    events = started(link, [("x", 1)])
    broker.swallow()
    assert link.publish(Message("x", b"lost")) is not None
    broker.restore()
    token = link.publish(Message("x", b"kept"))
    assert wait_for(lambda: events.published == [token])
    assert events.payloads() == [b"kept"]


def test_a_second_client_of_a_name_takes_the_session_over() -> None:
    broker = InProcessBroker()
    first, second = InProcessLink(broker, "same"), InProcessLink(broker, "same")
    old = started(first, [("x", 1)])
    new = started(second, [("x", 1)])
    assert new.sessions == [True]
    assert wait_for(lambda: old.reasons == ["session taken over"])
    assert first.publish(Message("x", b"1")) is None
    broker.publish(Message("x", b"2"))
    assert wait_for(lambda: new.payloads() == [b"2"])
    assert old.messages == []


def test_a_group_passes_over_absent_members() -> None:
    broker = InProcessBroker()
    gone, here = InProcessLink(broker, "gone"), InProcessLink(broker, "here")
    started(gone, [("$share/pool/x", 1)])
    got = started(here, [("$share/pool/x", 1)])
    gone.drop()
    for number in range(4):
        broker.publish(Message("x", b"%d" % number))
    assert wait_for(lambda: len(got.messages) == 4)
