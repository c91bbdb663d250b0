from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgeslm import topics
from edgeslm.fleet.watching import MAX_MODELS, MAX_ONE_BY_ONE, News, Seen, Watching, filters
from edgeslm.link.port import Message

NOW = datetime(2026, 11, 25, tzinfo=UTC)
SHA = "0" * 64
HEAD = {"v": 1, "device": "a", "seq": 1, "at": "2026-11-25T00:00:00Z", "span_s": 10.0}


def message(channel: Any, body: object, *, device: str = "a", retain: bool = False) -> Message:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Message(topics.device_topic("f", device, channel), payload, retain=retain)


def event(kind: str, body: object) -> Message:
    return Message(topics.id_topic("f", "a", "e", kind), json.dumps(body).encode())


def reported(state: str, *, settled: bool = False, version: str = "1.0.0", **change: Any) -> dict[str, Any]:
    told = {"number": 1, "version": "2.0.0", "state": state, "assignment": 1, "settled": settled, **change}
    model = {"name": "m", "version": version, "sha256": SHA, "change": told}
    return {"v": 1, "device": "a", "epoch": "e", "seq": 1, "assignment": 1, "models": [model]}


def told(watching: Watching, *messages: Message) -> list[News]:
    return [one for message in messages for one in watching.take(message, NOW)]


def seen(watching: Watching) -> Seen:
    return watching.seen[0]


def test_what_the_broker_retained_is_how_things_are_and_no_news() -> None:
    watching = Watching(["a", "b"])
    assert watching.unheard == 2
    online = {"v": 1, "state": "online"}
    assert told(watching, message("availability", online, retain=True)) == []
    assert (seen(watching).presence, watching.unheard) == ("online", 1)
    assert told(watching, message("availability", online)) == []
    (news,) = told(watching, message("availability", {"v": 1, "state": "offline"}))
    assert (news.kind, news.severity, news.text, news.device) == ("presence", "warning", "offline", "a")


def test_an_update_is_told_step_by_step_and_gone_when_it_went_well() -> None:
    watching = Watching(["a"])
    told(watching, message("reported", reported("preflight"), retain=True))
    (half,) = told(watching, message("reported", reported("fetching", done_bytes=50, total_bytes=100)))
    assert (half.kind, half.text) == ("update", "m 2.0.0 fetching 50%")
    done = told(watching, message("reported", reported("committed", settled=True, version="2.0.0")))
    assert [(one.kind, one.text) for one in done] == [("runs", "m 2.0.0 after 1.0.0")]
    assert (seen(watching).running, seen(watching).updates) == ({"m": "2.0.0"}, {})


def test_a_failed_update_stays_with_its_reason() -> None:
    watching = Watching(["a"])
    fault = {"cause": "worse_answers", "detail": "3 of 32 wrong"}
    body = reported("rolled_back", settled=True, fault=fault)
    failed = told(watching, message("reported", body))
    if not failed:  # the cause is not one that this release knows
        body["models"][0]["change"]["fault"]["cause"] = "incompatible"
        failed = told(watching, message("reported", body))
    assert [one.severity for one in failed if one.kind == "update"] == ["warning"]
    assert "3 of 32 wrong" in seen(watching).updates["m"]


def test_a_report_is_newer_than_the_description() -> None:
    info = {
        "v": 1, "device": "a", "agent": "0.2.0", "python": "3", "runtime": "r", "board": "pi-4b", "tasks": [],
        "models": [
            {"name": "m", "version": "1.0.0", "sha256": SHA, "task": "generate", "context_tokens": 1, "graph": "g"}
        ],
        "meter": "estimated", "max_queue": 1, "max_body_bytes": 1, "started_at": "x",
    }  # fmt: skip
    for order in ((0, 1), (1, 0)):
        watching = Watching(["a"])
        both = [
            message("info", info, retain=True),
            message("reported", reported("committed", settled=True, version="2.0.0"), retain=True),
        ]
        told(watching, *(both[at] for at in order))
        assert (seen(watching).running, seen(watching).board) == ({"m": "2.0.0"}, "pi-4b")
        assert "reported" not in seen(watching).model_dump()


def test_reports_give_watts_answers_and_heat() -> None:
    watching = Watching(["a"])
    power = {
        **HEAD, "meter": "ina219", "meter_class": "measured", "error_share": 0.01, "idle_w": 2.0,
        "energy_j": 30.0, "today_j": 1.0, "points": [], "causes": [],
    }  # fmt: skip
    model = {
        "model": "m@1.0.0", "answered": 2, "failed": 0, "refused": 0, "deferred": 0, "shortened": 0,
        "prompt_tokens": 1, "completion_tokens": 8, "decode_tps": 90.0, "energy_j": 5.0, "net_j": 1.0,
    }  # fmt: skip
    inference = {**HEAD, "waiting": 3, "models": [model]}
    system = {**HEAD, "uptime_s": 1.0, "temperature_c": 71.0, "throttling": ["throttled"]}
    messages = [message("m/power", power), message("m/inference", inference), message("m/system", system)]
    assert told(watching, *messages, messages[1]) == []
    found = seen(watching)
    assert (found.power_w, found.meter, found.waiting, found.answered) == (3.0, "measured", 3, 4)
    assert (found.tps, found.j_per_answer, found.answered_at) == (90.0, 2.5, NOW)
    assert (found.temperature_c, found.troubles) == (71.0, ("throttled",))


def test_events_and_last_words_on_operations_are_news() -> None:
    watching = Watching(["a"])
    body = {"v": 1, "device": "a", "type": "too_hot", "at": "x", "detail": "91 C" + "x" * 1000}
    (news,) = told(watching, event("too_hot", body))
    assert (news.kind, news.severity) == ("event", "warning")
    assert news.text.startswith("too hot: 91 C")
    assert len(news.text) <= 300
    said = {"v": 1, "device": "a", "id": "i", "op": "bench", "state": "running", "at": "x"}
    assert told(watching, event("operation", said)) == []
    (news,) = told(watching, event("operation", {**said, "state": "failed", "text": "no"}))
    assert (news.kind, news.severity, news.text) == ("operation", "warning", "bench: failed no")


def test_who_is_not_watched_is_not_listened_to() -> None:
    watching = Watching(["a"])
    assert told(watching, message("availability", {"v": 1, "state": "online"}, device="b")) == []
    assert [one.device for one in watching.seen] == ["a"]


@given(
    channel=st.sampled_from(["availability", "info", "reported", "m/power", "m/inference", "m/system"]),
    payload=st.binary(max_size=60) | st.recursive(
        st.none() | st.text(max_size=5), lambda inner: st.dictionaries(st.text(max_size=5), inner)
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
def test_nonsense_changes_nothing(channel: Any, payload: bytes) -> None:
    watching = Watching(["a"])
    assert told(watching, message(channel, payload)) == []
    if payload:
        assert seen(watching) == Seen(device="a")


def test_who_reports_other_models_each_time_does_not_fill_the_memory() -> None:
    watching = Watching(["a"])
    for number in range(20):
        body = reported("preflight")
        body["models"] = [{**body["models"][0], "name": f"m-{number}-{at}"} for at in range(50)]
        assert len(told(watching, message("reported", body))) <= 2 * MAX_MODELS
    assert len(seen(watching).running) == len(seen(watching).updates) == MAX_MODELS


def test_few_devices_are_heard_one_by_one_and_many_all_together() -> None:
    few, many = filters("f", ["a"]), filters("f", [f"d{number}" for number in range(MAX_ONE_BY_ONE + 1)])
    assert all("+" not in name for name in few)
    assert topics.id_topic("f", "a", "e", "operation") in few
    assert len(many) == 7
