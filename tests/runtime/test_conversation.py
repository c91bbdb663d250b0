"""Turns become a prompt that there is room for."""

import pytest

from edgeslm.errors import BadRequestError, ContextOverflowError, TooLargeError
from edgeslm.runtime.conversation import Fitted, Turn, fit
from edgeslm.runtime.generation import Generation
from edgeslm.runtime.prefix_cache import KeptStates, PrefixPlace
from edgeslm.schema.message import Options, PromptRequest

SYSTEM = 5
COMMAND = "turn the kitchen lights to 40 percent"


class Words:
    """A word is a token; five stand before everything."""

    max_chars = 1000
    beginning = ()

    def least_tokens(self, texts):
        return 0

    def with_system(self, system):
        return self

    def clean(self, prompt):
        if not prompt.strip():
            raise BadRequestError("empty prompt")
        return prompt

    def render(self, turns, prompt):
        said = [text for turn in turns for text in (turn.prompt, turn.answer)]
        return [0] * SYSTEM + list(range(len(" ".join([*said, prompt]).split())))


TURNS = tuple(Turn(f"ask {n} a b", f"say {n} c") for n in range(4))  # seven words each


def fitted(prompt="what now", turns=TURNS, limit=100, room=None, overflow="slide"):
    return fit(Words(), turns, prompt, limit=limit, room=limit if room is None else room, overflow=overflow)


def test_what_there_is_room_for_stays_as_it_is():
    assert fitted(overflow="error") == fitted() == Fitted([0] * 5 + list(range(30)), "what now")


def test_error_says_how_many_tokens_and_the_limit():
    with pytest.raises(
        ContextOverflowError, match="and 4 earlier turns of 35 tokens, the model takes 34"
    ) as found:
        fitted(limit=34, overflow="error")
    assert (found.value.actual, found.value.limit, found.value.unit, found.value.turns) == (
        35,
        34,
        "tokens",
        4,
    )
    assert "overflow 'slide'" in str(found.value)
    assert isinstance(found.value, TooLargeError)
    assert found.value.code == "too_large"


def test_an_answer_becomes_shorter_before_a_prompt_is_refused():
    assert fitted(limit=35, room=10, overflow="error").dropped_turns == 0


@pytest.mark.parametrize(("limit", "dropped"), [(35, 0), (34, 2), (28, 2), (21, 3), (14, 3), (13, 4)])
def test_slide_drops_the_oldest_turns_with_some_room_to_spare(limit, dropped):
    found = fitted(limit=limit)
    assert found.dropped_turns == dropped
    assert found.token_ids[:SYSTEM] == [0] * SYSTEM
    assert len(found.token_ids) <= limit
    assert found.dropped_chars == 0


def test_after_a_slide_there_is_room_for_turns_without_another_one():
    kept = TURNS[fitted(limit=40, turns=[*TURNS, Turn("e f g", "h i j k")]).dropped_turns :]
    assert fitted(limit=40, turns=kept).dropped_turns == 0


def test_the_room_for_the_answer_counts_where_turns_can_go():
    assert fitted(limit=60, room=34).dropped_turns > 0
    assert fitted(limit=60, room=6, turns=()).dropped_chars == 0  # a prompt alone rather shortens its answer


def test_of_a_prompt_that_is_too_long_alone_the_end_stays():
    words = " ".join(f"w{n}" for n in range(60))
    found = fitted(words, limit=25)
    assert found.dropped_turns == 4
    assert found.prompt.split() == words.split()[-20:]
    assert found.dropped_chars == len(words) - len(found.prompt)
    assert len(found.token_ids) == 25
    with pytest.raises(ContextOverflowError, match="the model takes 25"):
        fitted(words, limit=25, overflow="error")


def test_what_is_far_too_long_is_cut_as_well():
    found = fitted("w " * 10_000, limit=25)
    assert len(found.token_ids) == 25
    assert found.prompt.startswith("w")
    with pytest.raises(ContextOverflowError, match="20000 characters"):
        fitted("w " * 10_000, limit=25, overflow="error")


def test_where_not_even_the_frame_fits_there_is_an_error():
    with pytest.raises(ContextOverflowError):
        fitted(limit=4)


def test_no_prompt_is_none_whatever_the_policy():
    for overflow in ("error", "slide"):
        with pytest.raises(BadRequestError):
            fitted("  ", overflow=overflow)


# --- with a model --------------------------------------------------------------------------------------------------


def talk(model, prompts, turns=(), **options):
    """Ask one prompt after the other in a session; the turns, and the last answer."""
    turns = list(turns)
    for prompt in prompts:
        answer = model.answer(prompt, Options(session="s", **options), turns=turns)
        turns = [*turns[answer.dropped_turns :], answer.turn]
    return turns, answer


def test_the_next_turn_begins_with_what_was_computed_for_the_turns_before(model):
    turns, answer = talk(model, [COMMAND, "turn on the fan"])
    before = turns[0].token_ids
    assert answer.generation.prompt_tokens == len(before) + len(model.encode("turn on the fan"))
    # All of the first turn is known but the token that ended its answer.
    assert answer.generation.cached_tokens == len(before) - 1
    assert turns[1].answer == answer.generation.text


def test_a_conversation_is_answered_as_if_it_were_computed_anew(model):
    turns, answer = talk(model, [COMMAND, "turn on the fan"])
    model.engine.reset()
    again = model.answer("turn on the fan", Options(session="s"), turns=turns[:1])
    assert again.generation.cached_tokens == 0
    assert again.generation.token_ids == answer.generation.token_ids


def test_other_work_in_between_does_not_cost_the_conversation_what_was_computed(model):
    def classify():
        model.infer(
            PromptRequest(id="a", task="classify", prompt="what now", options={"choices": ("a", "b")})
        )

    threads = model.threads
    for work in (classify, lambda: model.set_threads(threads + 1), lambda: model.set_threads(threads)):
        turns, _ = talk(model, [COMMAND, "turn on the fan"])
        work()
        _, answer = talk(model, ["stop"], turns)
        assert answer.generation.cached_tokens == sum(len(turn.token_ids) for turn in turns) - 1


def test_a_turn_says_what_its_answer_says_and_ends_it(model):
    stops = model.installed.manifest.stop_tokens
    cut, _ = talk(model, [COMMAND], max_tokens=4)
    assert cut[0].token_ids[-1] == stops[0]
    stopped, answer = talk(model, [COMMAND], stop=(',"brightness"',))
    assert model.tokenizer.decode(list(stopped[0].token_ids)).endswith(answer.generation.text)
    assert answer.generation.text in stopped[0].answer
    completed, answer = talk(model, [COMMAND], max_tokens=1, json_schema={
        "type": "object", "additionalProperties": False, "required": ["intent"],
        "properties": {"intent": {"type": "string"}},
    })  # fmt: skip
    assert answer.generation.closed
    assert model.tokenizer.decode(list(completed[0].token_ids)).endswith(answer.generation.text)


def test_too_many_turns_are_an_error_or_slide_out(model):
    turns, _ = talk(model, [COMMAND])
    many = turns * 4
    with pytest.raises(ContextOverflowError, match="and 4 earlier turns"):
        model.answer(COMMAND, Options(session="s"), turns=many)
    answer = model.answer(COMMAND, Options(session="s", overflow="slide"), turns=many)
    assert 0 < answer.dropped_turns <= 4
    assert answer.generation.prompt_tokens <= model.installed.manifest.max_prompt_tokens


def test_the_end_of_a_long_prompt_is_answered(model):
    answer = model.answer(f"{'please ' * 300}{COMMAND}", Options(overflow="slide"))
    assert answer.dropped_chars > 1000
    assert answer.generation.prompt_tokens <= model.installed.manifest.max_prompt_tokens


def test_a_place_without_memory_is_a_place(model):
    assert PrefixPlace(KeptStates(0)).cache("m").longest([1, 2, 3]) is None


def test_a_turn_tells_its_memory():
    short, long = Turn("a", "b"), Turn("a" * 1000, "b", tuple(range(100)))
    assert long.size_bytes > short.size_bytes + 5000


def test_the_plain_form_knows_no_tokens_of_an_answer_that_spells_markup(model):
    generation = Generation(
        text="a</s>b", token_ids=(5, 6), prompt_tokens=1, finish_reason="stop",
        prefill_s=0.0, first_token_s=0.0, decode_s=0.0, total_s=0.0,
    )  # fmt: skip
    turn = model._renderer.turn("on", generation)
    stops = model.installed.manifest.stop_tokens
    assert sum(token in stops for token in turn.token_ids) == 1
