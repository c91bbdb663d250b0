from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.rules.matching import MAX_REMEMBERED, TopicTree, covers, least_filters, overlap
from edgeslm.link.inprocess import matches

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join)


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from(["a", "b", "+", "", "$x"]), min_size=1, max_size=4))
    if draw(st.booleans()):
        levels.append("#")
    return "/".join(levels)


@given(st.lists(filters(), max_size=8), TOPIC)
def test_finds_what_a_broker_would_deliver(names, topic):
    tree = TopicTree((name, index) for index, name in enumerate(names))
    expected = sorted(index for index, name in enumerate(names) if matches(name, topic))
    assert sorted(tree.find(topic)) == expected
    assert sorted(tree.find(topic)) == expected


@given(filters(), filters(), TOPIC)
def test_filters_that_share_a_topic_overlap(one, other, topic):
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)
        assert overlap(other, one)
    if covers(one, other) and matches(other, topic):
        assert matches(one, topic)


@given(st.lists(st.tuples(filters(), st.sampled_from([0, 1])), max_size=6), TOPIC)
def test_the_least_subscriptions_bring_everything_at_its_quality(names, topic):
    wanted = [qos for name, qos in names if matches(name, topic)]
    granted = [qos for name, qos in least_filters(names) if matches(name, topic)]
    assert bool(wanted) == bool(granted)
    if wanted:
        assert max(granted) >= max(wanted)


def test_remembers_a_bounded_number_of_topics():
    tree = TopicTree([("a/#", 1)])
    for number in range(3 * MAX_REMEMBERED):
        assert tree.find(f"a/{number}") == (1,)
        assert tree.find(f"b/{number}") == ()
    assert len(tree._remembered) <= MAX_REMEMBERED


def test_wildcards_in_a_topic_match_nothing_by_themselves():
    tree = TopicTree([("a/+", 1), ("a/b", 2)])
    assert tree.find("a/+") == (1,)
    assert tree.find("a/b") == (1, 2) or set(tree.find("a/b")) == {1, 2}
