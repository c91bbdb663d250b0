from __future__ import annotations

import threading
import time

from edgeslm.agent import precedence
from edgeslm.agent.precedence import EXPECTED_S, LONGEST_S, SENT_S, Precedence


def test_readings_wait_until_the_prompt_is_answered(monkeypatch) -> None:
    monkeypatch.setattr(precedence, "LONGEST_S", longest_s := 5.0)
    held: list[float] = []
    order = Precedence(held.append)
    order.begin()
    waited = threading.Event()
    thread = threading.Thread(target=lambda: (order.wait(), waited.set()))
    thread.start()
    assert not waited.wait(0.05)
    order.end()
    assert waited.wait(5.0)
    thread.join()
    assert 0.9 * longest_s < held[0] <= longest_s
    assert 0.0 < held[-1] <= SENT_S


def test_after_an_answer_readings_wait_until_it_can_have_been_sent() -> None:
    held: list[float] = []
    order = Precedence(held.append)
    order.begin()
    ended_s = time.monotonic()
    order.end()
    order.wait()
    assert SENT_S * 0.5 < time.monotonic() - ended_s < LONGEST_S
    order.end()
    assert held[-1] == 0.0, "there was nothing to answer"


def test_a_prompt_that_does_not_come_costs_readings_a_few_milliseconds() -> None:
    order = Precedence(lambda seconds: None)
    order.expect()
    began_s = time.monotonic()
    order.wait()
    assert EXPECTED_S * 0.5 < time.monotonic() - began_s < LONGEST_S
    began_s = time.monotonic()
    order.wait()
    assert time.monotonic() - began_s < EXPECTED_S


def test_readings_are_looked_at_half_of_the_time_however_many_prompts_come(monkeypatch) -> None:
    monkeypatch.setattr(precedence, "LONGEST_S", 0.2)
    order = Precedence(lambda seconds: None)
    stop = threading.Event()
    waits: list[float] = []

    def look() -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            order.wait()
            waits.append(time.monotonic() - began_s)
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    began_s = time.monotonic()
    while time.monotonic() < began_s + 1.5:
        order.begin()
        time.sleep(0.01)
        order.end()
    stop.set()
    thread.join()
    assert sum(waits) < 0.75 * 1.5
    assert len(waits) > 50


def test_after_a_break_the_next_prompt_is_served_first_again(monkeypatch) -> None:
    monkeypatch.setattr(precedence, "LONGEST_S", 0.1)
    held: list[float] = []
    order = Precedence(held.append)
    order.begin()
    time.sleep(0.2)
    order.end()
    held.clear()
    order.begin()
    assert held
    assert held[0] > 0.05
