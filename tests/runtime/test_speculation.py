"""More than one token a step: the answers stay the same, and what does not pay is left out."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.models.package import parse_golden
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.constraint import GrammarCompiler
from edgeslm.runtime.constraint_form import form_of
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import SignatureExecutor
from edgeslm.runtime.generation import GenerationSettings, generate
from edgeslm.runtime.sampling import SamplingSettings
from edgeslm.runtime.speculation import Copies, EarlierAnswers, Pace
from edgeslm.schema.message import Options

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "again": {"type": "string"},
        "state": {"enum": ["on", "off", "open"]},
    },
    "required": ["name", "again", "state"],
    "additionalProperties": False,
}


class VerifyingEngine(KvEngine):
    """Gives logits after each of several tokens, by taking them one by one.

    Attributes:
        step_s: seconds that a step takes besides.
        verify_s: seconds that checking takes, however many tokens there are.
    """

    verify_limit = 8

    def __init__(self, executor, step_s=0.0, verify_s=0.0):
        super().__init__(executor)
        self.step_s, self.verify_s = step_s, verify_s
        self.verified = 0

    def step(self, token):
        time.sleep(self.step_s)
        return super().step(token)

    def verify(self, tokens):
        self.verified += 1
        time.sleep(self.verify_s)
        return np.array([super(VerifyingEngine, self).step(token).copy() for token in tokens])


@pytest.fixture(scope="module")
def executor(home_command):
    graph = next(g for g in home_command.manifest.graphs if choose_runtime().kind in g.runtimes)
    return SignatureExecutor(home_command.file(graph.file), choose_runtime(), 1)


@pytest.fixture(scope="module")
def prompts(home_command):
    name = home_command.manifest.golden
    cases = parse_golden(home_command.file(name).read_bytes(), home_command.file(name), name)
    said = [case.prompt for case in cases][::12]
    return [*said, "turn on the zorvex lamp", "turn on the zorvex lamp please"]


def settings(model, temperature=0.0, grammar=None, **changes):
    return GenerationSettings(
        max_tokens=40,
        stop_tokens=frozenset(model.installed.manifest.stop_tokens),
        sampling=SamplingSettings(temperature, seed=5),
        grammar=grammar,
        **changes,
    )


class Eager(Pace):
    """Guesses wherever it can, whether it pays or not."""

    def pays(self, pending, guessed, hope):
        return True


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("has_form", [False, True])
def test_guessing_changes_no_token(model, executor, prompts, temperature, has_form):
    grammar = None
    if has_form:
        forms = GrammarCompiler(model._tokenizer, model.installed.manifest.stop_tokens)
        grammar = forms.compile(form_of(Options(json_schema=SCHEMA)))
    plain, guessing = KvEngine(executor), VerifyingEngine(executor)
    pace, earlier = Eager(), EarlierAnswers()
    confirmed = 0
    for prompt in [*prompts, *prompts]:
        asked = settings(model, temperature, grammar)
        ids = model.encode(prompt)
        expected = generate(plain, model._tokenizer, ids, asked)
        found = generate(guessing, model._tokenizer, ids, asked, pace=pace, earlier=earlier)
        assert found.token_ids == expected.token_ids
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert expected.guessed_tokens == 0
        confirmed += found.confirmed_tokens
    assert confirmed > 20


def test_the_last_token_that_fits_is_guessed_but_none_beyond(model, executor, prompts):
    engine, earlier = VerifyingEngine(executor), EarlierAnswers()
    ids = model.encode(prompts[0])
    whole = generate(engine, model._tokenizer, ids, settings(model), pace=Eager(), earlier=earlier)
    for limit in range(1, len(whole.token_ids)):
        asked = GenerationSettings(max_tokens=limit, stop_tokens=settings(model).stop_tokens)
        found = generate(engine, model._tokenizer, ids, asked, pace=Eager(), earlier=earlier)
        assert found.token_ids == whole.token_ids[:limit]
        assert found.finish_reason == "length"


def test_guessing_stays_on_where_it_pays_and_goes_off_where_it_does_not(model, executor, prompts):
    def verified(step_s, verify_s):
        engine, pace, earlier = VerifyingEngine(executor, step_s, verify_s), Pace(), EarlierAnswers()
        for _ in range(16):
            generate(
                engine,
                model._tokenizer,
                model.encode(prompts[0]),
                settings(model),
                pace=pace,
                earlier=earlier,
            )
        return engine.verified

    assert verified(step_s=0.02, verify_s=0.0) >= 15
    assert 2 <= verified(step_s=0.0, verify_s=0.4) <= 6


def test_known_tokens_are_computed_together_only_where_that_is_faster(executor):
    class Counting(KvEngine):
        prefills = 0
        prefill_s = 0.0

        def prefill(self, tokens, should_stop=None):
            self.prefills += 1
            time.sleep(self.prefill_s)
            super().prefill(tokens, should_stop)

    for prefill_s in (0.0, 0.4):
        engine, pace = Counting(executor), Pace()
        engine.prefill_s = prefill_s
        logits = []
        for _ in range(12):
            engine.reset()
            logits.append(pace.append(engine, [1, 5, 6, 7, 8]).copy())
            pace.append(engine, [9])
        if prefill_s:
            assert 2 <= engine.prefills <= 4
        for other in logits[1:]:
            np.testing.assert_allclose(other, logits[0], atol=0.2)


def test_a_rewound_engine_computes_as_if_nothing_had_been_there(executor):
    engine = KvEngine(executor)
    engine.prefill([1, 20, 30])
    expected = engine.step(40).copy()
    for token in (50, 60, 70):
        engine.step(token)
    engine.rewind(3)
    np.testing.assert_array_equal(engine.step(40), expected)
    assert engine.position == 4


TOKENS = st.lists(st.integers(0, 5), max_size=60)


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_what_is_proposed_stood_there_after_the_same_tokens(prompt, answer, limit):
    copies = Copies(prompt)
    copies.extend(answer)
    said = [*prompt, *answer]
    proposal = copies.propose(limit)
    assert len(proposal) <= limit
    if proposal:
        found = [*said[-2:], *proposal]
        assert any(said[at : at + len(found)] == found for at in range(len(said)))


def test_nothing_is_proposed_across_the_end_of_an_earlier_answer():
    copies = Copies([1, 2, 3], [9, 1, 2, 3])
    assert copies.propose(4) == []
    assert Copies([1, 2, 3, 4], [9, 1, 2]).propose(4) == [3, 4]


def test_earlier_answers_are_forgotten_in_the_order_in_which_they_came():
    earlier = EarlierAnswers()
    for number in range(5):
        earlier.add((number,) * 700)
    assert [answer[0] for answer in earlier.all()] == [3, 4]
    earlier.add((7,) * 5000)
    assert [(answer[0], len(answer)) for answer in earlier.all()] == [(7, 2048)]
