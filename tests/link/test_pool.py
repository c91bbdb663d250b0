"""Whom a pool asks, and instead of whom."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm import codec
from edgeslm.link.pool import Drop, Forward, Member, Pool, Reply, Requester, TakeBack, choose
from edgeslm.schema.message import ErrorBody, Info, ModelInfo, Options, PromptRequest, Receipt, Result
from edgeslm.schema.metrics import BatteryMetrics, InferenceMetrics, PowerMetrics, WindowState

MODEL = "echo"


def info(device: str, *models: str) -> Info:
    return Info(
        device=device,
        agent="1",
        python="3",
        runtime="none",
        board="host",
        tasks=("generate",),
        models=tuple(
            ModelInfo(
                name=name, version="1.0.0", sha256="0" * 64, task="generate", context_tokens=8, graph="g"
            )
            for name in models
        ),
        meter="estimated",
        max_queue=8,
        max_body_bytes=1000,
        started_at="2026-01-01T00:00:00Z",
    )


def power(device: str, left_share: float = 1.0, battery: BatteryMetrics | None = None) -> PowerMetrics:
    window = WindowState(name="day", window_s=60, limit_j=1, used_j=0, left_share=left_share)
    return PowerMetrics(
        device=device, seq=0, at="", span_s=1, meter="m", meter_class="estimated", error_share=0, idle_w=1,
        energy_j=0, today_j=0, points=(), causes=(), windows=(window,), battery=battery,
    )  # fmt: skip


def pool(*devices: str) -> Pool:
    made = Pool("home", MODEL, patience_s=100)
    for device in devices:
        made.note_info(device, info(device, MODEL), 0)
        made.note_presence(device, 0, is_online=True)
    return made


def request(request_id: str = "r1", **options: Any) -> PromptRequest:
    return PromptRequest(id=request_id, prompt="hello", options=Options(**options))


def requester(serial: int = 1, topic: str | None = "reply/me") -> Requester:
    return Requester(topic, b"c", serial)


def answer(
    device: str, request_id: str = "r1", code: Any = None, retry_after_s: float | None = None
) -> Result:
    if code is not None:
        error = ErrorBody(code=code, message="no", retry_after_s=retry_after_s)
        return Result(id=request_id, device=device, error=error)
    receipt = Receipt(
        prompt_tokens=1, completion_tokens=1, queue_ms=0, total_ms=1, energy_j=0, energy_net_j=0, power_w=0,
        meter="estimated", model="echo", model_sha256="0", runtime="none",
    )  # fmt: skip
    return Result(id=request_id, device=device, text="hello", finish_reason="stop", receipt=receipt)


def answered(made: Pool, device: str, now_s: float, **more: Any) -> list[Any]:
    result = answer(device, **more)
    return list(made.answered(result, codec.encode(result), now_s))


def asked(actions: Any) -> list[str]:
    return [action.device for action in actions if isinstance(action, Forward)]


def replies(actions: Any) -> list[Reply]:
    return [action for action in actions if isinstance(action, Reply)]


def code_of(reply: Reply) -> str:
    error = codec.decode(Result, reply.body).error
    assert error is not None
    return error.code


# --- whom ------------------------------------------------------------------------------------------------------


def chosen(*members: Member, **more: Any) -> str | None:
    return choose(members, more.get("held", {}), more.get("late", {}), more.get("excluded", ()))


def member(device: str, **more: Any) -> Member:
    return Member(device, **{"is_online": True, "serves": True, **more})


def test_nobody_who_is_away_or_has_another_model_is_asked() -> None:
    assert chosen(member("a", is_online=False), member("b", serves=False)) is None
    assert chosen(member("a", is_online=False), member("c")) == "c"


def test_who_has_energy_goes_first_and_who_has_none_is_the_last_resort() -> None:
    assert chosen(member("a", left_share=0.01), member("b", waiting=50)) == "b"
    assert chosen(member("a", battery_share=0.1), member("b")) == "b"
    assert chosen(member("a", left_share=0.01)) == "a"


def test_who_has_least_to_do_goes_first() -> None:
    assert chosen(member("a", waiting=3), member("b", waiting=1), held={"b": 2}) == "b"
    assert chosen(member("a"), member("b"), held={"a": 1}) == "b"
    assert chosen(member("a"), member("b"), late={"a": 1}) == "b"


def test_reports_of_devices_steer_the_choice() -> None:
    made = pool("a", "b")
    made.note_power("a", power("a", left_share=0.0))
    assert asked(made.take(request("r1"), requester(), None, 0)) == ["b"]
    made.note_power("a", power("a", battery=BatteryMetrics(share=0.05, external=True)))
    assert asked(made.take(request("r2"), requester(), None, 0)) == ["a"]
    report = InferenceMetrics(device="a", seq=0, at="", span_s=1, waiting=9, models=())
    made.note_inference("a", report)
    assert asked(made.take(request("r3"), requester(), None, 0)) == ["b"]


# --- instead of whom -------------------------------------------------------------------------------------------


def test_a_device_that_dies_with_a_prompt_is_replaced_at_once() -> None:
    made = pool("a", "b")
    assert asked(made.take(request(deadline_ms=10_000), requester(), None, 0)) == ["a"]
    actions = made.note_presence("a", 1, is_online=False)
    assert asked(actions) == ["b"]
    forward = next(action for action in actions if isinstance(action, Forward))
    assert forward.request.options.deadline_ms == 9000, "with what is left of the deadline"
    assert [reply.device for reply in replies(answered(made, "b", 2))] == ["b"]


def test_a_device_that_lets_half_of_the_time_go_by_is_replaced_and_the_first_answer_wins() -> None:
    made = pool("a", "b", "c")
    made.take(request(deadline_ms=16_000), requester(), None, 0)
    assert made.due_s() == 8
    assert made.tick(7.9) == []
    assert asked(made.tick(8)) == ["b"]
    assert asked(made.tick(12)) == ["c"], "half of what is left"
    actions = answered(made, "a", 13)
    assert [reply.device for reply in replies(actions)] == ["a"]
    assert [action.device for action in actions if isinstance(action, TakeBack)] == ["b", "c"]
    assert answered(made, "b", 14) == [], "and no second one"
    assert made.report.model_dump(exclude={"fleet", "model"}) == {
        "answered": 1, "failed": 0, "replaced": 2, "repeated": 0, "surplus": 1,
    }  # fmt: skip


def test_a_late_device_is_asked_last_until_it_answers() -> None:
    made = pool("a", "b")
    made.take(request(deadline_ms=10_000), requester(), None, 0)
    made.tick(5)
    answered(made, "b", 6)
    assert asked(made.take(request("r2"), requester(), None, 7)) == ["b"]
    assert asked(made.take(request("r3"), requester(), None, 7)) == ["b"], "although a has nothing to do"


def test_a_device_that_refuses_is_replaced_and_asked_again_when_it_said() -> None:
    made = pool("a", "b")
    made.take(request(), requester(), None, 0)
    assert asked(answered(made, "a", 1, code="busy", retry_after_s=5)) == ["b"]
    assert answered(made, "b", 2, code="budget", retry_after_s=20) == []
    assert made.due_s() == 6
    assert asked(made.tick(6)) == ["a"]


def test_an_error_of_the_prompt_is_told_at_once() -> None:
    made = pool("a", "b")
    made.take(request(), requester(), None, 0)
    assert code_of(replies(answered(made, "a", 1, code="bad_request"))[0]) == "bad_request"


def test_what_all_refuse_for_good_ends_with_their_error() -> None:
    made = pool("a", "b")
    made.take(request(), requester(), None, 0)
    answered(made, "a", 1, code="internal")
    assert code_of(replies(answered(made, "b", 2, code="internal"))[0]) == "internal"


def test_a_prompt_without_a_device_waits_for_one_until_its_deadline() -> None:
    made = pool()
    assert made.take(request(deadline_ms=5000), requester(), None, 0) == []
    made.take(request("r2", deadline_ms=5000), requester(2), None, 0)
    made.note_info("a", info("a", MODEL), 1)
    assert asked(made.note_presence("a", 1, is_online=True)) == ["a", "a"]
    answered(made, "a", 2)
    assert code_of(replies(made.tick(5))[0]) == "deadline"
    assert made.due_s() == float("inf")


def test_the_expiry_of_a_message_is_a_deadline_too() -> None:
    made = pool("a")
    made.take(request(), requester(), 3.0, 0)
    assert [code_of(reply) for reply in replies(made.tick(3))] == ["deadline"]


def test_an_answer_from_a_device_that_was_not_asked_counts_for_nothing() -> None:
    made = pool("a", "b")
    made.take(request(), requester(), None, 0)
    assert answered(made, "b", 1) == []
    assert len(replies(answered(made, "a", 1))) == 1


# --- once ------------------------------------------------------------------------------------------------------


def test_an_id_that_was_answered_is_answered_again_and_not_asked() -> None:
    made = pool("a", "b")
    made.take(request(), requester(), None, 0)
    first = replies(answered(made, "a", 1))
    again = made.take(request(), requester(2), None, 2)
    assert [reply.body for reply in replies(again)] == [first[0].body]
    assert asked(again) == []


def test_an_id_used_for_another_prompt_is_refused() -> None:
    made = pool("a")
    made.take(request(), requester(), None, 0)
    other = PromptRequest(id="r1", prompt="something else")
    assert code_of(replies(made.take(other, requester(2), None, 1))[0]) == "bad_request"


def test_two_requesters_of_one_id_get_one_answer_each() -> None:
    made = pool("a")
    made.take(request(), requester(1, "reply/one"), None, 0)
    assert made.take(request(), requester(2, "reply/two"), None, 0) == []
    assert [reply.requester.topic for reply in replies(answered(made, "a", 1))] == ["reply/one", "reply/two"]


def test_the_same_requester_again_takes_the_place_of_its_first_message() -> None:
    made = pool("a")
    made.take(request(), requester(1), None, 0)
    assert made.take(request(), requester(2), None, 0) == [Drop(1)]
    assert [reply.requester.serial for reply in replies(answered(made, "a", 1))] == [2]


def test_another_model_is_refused() -> None:
    wrong = PromptRequest(id="r", prompt="p", model="other")
    assert code_of(replies(pool("a").take(wrong, requester(), None, 0))[0]) == "bad_request"


STEP = st.tuples(
    st.sampled_from(["take", "answer", "busy", "internal", "up", "down", "tick"]),
    st.integers(0, 2),
    st.integers(0, 4),
)


@given(st.lists(STEP, max_size=80))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_each_message_is_settled_exactly_once(steps: list[tuple[str, int, int]]) -> None:
    made, now_s, serial = pool("d0", "d1", "d2"), 0.0, 0
    settled: list[int] = []
    answers: dict[str, set[bytes]] = {}

    def note(actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                settled.append(action.requester.serial)
                if action.device is not None and codec.decode(Result, action.body).error is None:
                    answers.setdefault(action.request_id, set()).add(action.body)
            elif isinstance(action, Drop):
                settled.append(action.serial)
            elif isinstance(action, Forward):
                assert action.left_s > 0

    for kind, device, request_number in steps:
        name, request_id = f"d{device}", f"r{request_number}"
        now_s += 0.5
        if kind == "take":
            serial += 1
            note(made.take(request(request_id, deadline_ms=4000), requester(serial), None, now_s))
        elif kind == "answer":
            note(answered(made, name, now_s, request_id=request_id))
        elif kind in {"busy", "internal"}:
            note(answered(made, name, now_s, request_id=request_id, code=kind))
        elif kind == "tick":
            now_s += 1
            note(made.tick(now_s))
        else:
            note(made.note_presence(name, now_s, is_online=kind == "up"))
    note(made.tick(now_s + 100))
    assert sorted(settled) == list(range(1, serial + 1))
    assert all(len(bodies) == 1 for bodies in answers.values()), "one id, one answer"
