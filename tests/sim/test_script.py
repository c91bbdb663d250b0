from __future__ import annotations

import pytest

from edgeslm.sim.home import load_home
from edgeslm.sim.home_intents import apply, known_intents
from edgeslm.sim.script import Command, load_script

SCRIPT = load_script()


@pytest.mark.parametrize("command", SCRIPT.commands, ids=lambda command: command.say)
def test_the_expected_answer_is_an_intent_with_its_slots(command: Command) -> None:
    intent = command.answer["intent"]
    assert isinstance(intent, str)
    assert command.answer.keys() - {"intent"} <= known_intents()[intent]


def test_expected_answers_lead_to_the_expected_states_in_turn() -> None:
    home = load_home()
    for command in SCRIPT.commands:
        before, outcome = home, apply(home, dict(command.answer))
        home = outcome.home
        assert outcome.problem is None, command.say
        assert command.missed(home) == [], command.say
        # An expectation that holds beforehand would not notice an order that was not carried out.
        assert bool(command.state) == bool(outcome.changes) == bool(command.missed(before)), command.say


def test_the_script_is_varied() -> None:
    assert len(SCRIPT.commands) >= 14
    assert len({command.answer["intent"] for command in SCRIPT.commands}) >= 10


def test_a_missed_state_is_told_with_what_was_expected() -> None:
    command = Command(
        say="x", answer={}, state={"pump-7": {"state": "off"}, "nothing-like-it": {"state": "on"}}
    )
    assert command.missed(load_home()) == [
        'pump-7.state is "on", expected "off"',
        'nothing-like-it.state is null, expected "on"',
    ]
