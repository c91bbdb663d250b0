"""The training data of `home-command`: canonical answers, a clean split, labels the text decides."""

from __future__ import annotations

import itertools
import json
from random import Random

import pytest

pytest.importorskip("hassil")
pytest.importorskip("home_assistant_intents")

from edgeslm.forge.home_command.data import (
    SLOT_ORDER,
    Example,
    Sampler,
    fixed_fragments,
    generate,
    grammar,
    is_held_out,
    render_answer,
)
from edgeslm.forge.home_command.data.ambiguity import draw_mixed, find_ambiguous
from edgeslm.forge.home_command.data.grammar import CHOSEN, COPIED, END, Draft
from edgeslm.forge.home_command.data.noise import (
    add_fillers,
    drop_small_words,
    misspell,
    punctuate,
)
from edgeslm.forge.home_command.data.quantities import spell_integer
from edgeslm.forge.home_command.data.sampler import INTENT_WEIGHTS, MAX_TEXT_CHARS, load_sources
from edgeslm.forge.home_command.data.vocabulary import GENERIC_NOUNS, Vocabulary

COPIED_SLOTS = ("name", "area", "floor", "message", "item", "search_query", "conversation_command")


@pytest.fixture(scope="module")
def training() -> list[Example]:
    return list(generate(12_000, seed=11))


@pytest.fixture(scope="module")
def mixed() -> list[Example]:
    return draw_mixed(40_000, seed=12)


def test_an_answer_has_one_spelling_whatever_order_its_slots_came_in() -> None:
    slots = {"brightness": 40, "domain": "light", "area": "Kitchen"}
    answers = {render_answer("HassLightSet", dict(order)) for order in itertools.permutations(slots.items())}
    assert answers == {'{"intent":"HassLightSet","area":"Kitchen","domain":"light","brightness":40}'}


def test_answers_keep_letters_beyond_ascii() -> None:
    assert Example("spiel köln", "X", {"name": "Köln"}).answer == '{"intent":"X","name":"Köln"}'


def test_every_answer_is_json_in_canonical_order(training: list[Example]) -> None:
    for example in training:
        parsed = json.loads(example.answer)
        assert parsed.pop("intent") == example.intent
        assert parsed == example.slots
        ranks = [(SLOT_ORDER.index(slot), "") if slot in SLOT_ORDER else (99, slot) for slot in parsed]
        assert ranks == sorted(ranks)


def test_training_and_held_out_texts_are_disjoint(training: list[Example]) -> None:
    held_out = [example.text for example in generate(400, seed=11, held_out=True)]
    assert not {example.text for example in training} & set(held_out)
    assert all(is_held_out(text) for text in held_out)


def test_the_split_ignores_case_spacing_and_punctuation() -> None:
    for number in range(200):
        text = f"what's the humidity of tank {number}"
        assert is_held_out(text) == is_held_out(f"  Whats the  humidity of tank {number}?  ")


def test_about_one_text_in_25_is_held_out(mixed: list[Example]) -> None:
    texts = {example.text for example in mixed}
    share = sum(map(is_held_out, texts)) / len(texts)
    assert 0.03 < share < 0.05


def test_the_same_seed_gives_the_same_examples() -> None:
    assert list(generate(300, seed=5)) == list(generate(300, seed=5))
    assert list(generate(300, seed=5)) != list(generate(300, seed=6))


def test_every_intent_of_the_templates_is_drawn(training: list[Example]) -> None:
    upstream, _ = load_sources()
    assert {example.intent for example in training} == set(upstream.intents) == set(INTENT_WEIGHTS)


def test_phrasings_cover_every_intent() -> None:
    upstream, phrasings = load_sources()
    assert set(phrasings.intents) == set(upstream.intents)
    lines = [
        line
        for intent in phrasings.intents.values()
        for block in intent.data
        for line in block.sentence_texts
    ]
    assert len(lines) >= 350


def test_phrasings_use_only_slots_that_upstream_knows(mixed: list[Example]) -> None:
    clean = Sampler(3)
    known: dict[str, set[str]] = {}
    for _ in range(30_000):
        example = clean.sample()
        known.setdefault(example.intent, set()).update(example.slots)
    for example in mixed:
        assert set(example.slots) <= known[example.intent] | {"name", "area", "floor"}, example


def test_fewer_than_three_texts_in_a_thousand_are_ambiguous(mixed: list[Example]) -> None:
    clashes = find_ambiguous(mixed)
    assert len(clashes) < 0.003 * len({example.text for example in mixed}), clashes


def test_no_two_templates_read_the_same_words_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance hides clashes behind ever new names, so each slot gets one filler, told apart by kind only."""

    def fill(sampler: Sampler, list_name: str, draft: Draft) -> tuple[str, str]:
        proper = ("person", "weather", "todo", "vacuum", "lawn_mower", "opening_sensor", "occupancy_sensor")
        shows_kind = draft.noun == "must" or draft.domain in proper
        text = list_name.replace("_", "") + "ish"
        if list_name == "name":
            text = f"thing{draft.domain}".replace("_", "") if shows_kind else "thing"
        if list_name.endswith("_item") or list_name in ("message", "search_query"):
            text = "freetext"
        return text, text.capitalize() if list_name in ("name", "area", "floor") else text

    monkeypatch.setattr(Sampler, "_fill", fill)
    monkeypatch.setattr(grammar, "draw_number", lambda *_: 42)
    monkeypatch.setattr(grammar, "say_number", lambda *_, **__: "42")
    assert find_ambiguous(draw_mixed(80_000, seed=13)) == {}


def test_texts_are_short_lower_case_and_normalised(training: list[Example]) -> None:
    for example in training:
        assert example.text == " ".join(example.text.lower().split())
        assert 0 < len(example.text) <= MAX_TEXT_CHARS
        assert not {COPIED, CHOSEN, END} & set(example.text)


def test_what_is_copied_stands_in_the_text(training: list[Example]) -> None:
    for example in training:
        for slot in COPIED_SLOTS:
            if slot in example.slots:
                assert str(example.slots[slot]).lower() in example.text, example


def test_names_are_capitalised_word_by_word(training: list[Example]) -> None:
    for example in training:
        if "Timer" in example.intent:
            continue  # a timer's name is free text
        for slot in ("name", "area", "floor"):
            value = str(example.slots.get(slot, ""))
            assert value == " ".join(word.capitalize() for word in value.split())


def test_a_name_is_never_a_generic_noun_behind_an_area(mixed: list[Example]) -> None:
    areas = set(Vocabulary(frozenset()).areas)
    for example in mixed:
        name = str(example.slots.get("name", "")).lower()
        locked = any(verb in example.text for verb in ("lock", "bolt", "latch", "secure"))
        reads_state = example.intent == "HassGetState" and "state" not in example.slots
        if locked or reads_state or " " not in name or "Timer" in example.intent:
            continue
        head, _, noun = name.rpartition(" ")
        assert not (noun in GENERIC_NOUNS and head in areas), example


def test_areas_and_floors_share_nothing() -> None:
    vocabulary = Vocabulary(frozenset())
    assert not set(vocabulary.areas) & set(vocabulary.floors)
    assert len(vocabulary.areas) >= 120


def test_nouns_tell_the_kind_where_only_the_kind_decides() -> None:
    nouns = Vocabulary(frozenset()).nouns
    kinds = ("light", "fan", "cover", "valve", "climate", "media_player", "vacuum", "lawn_mower")
    for one, other in itertools.combinations(kinds, 2):
        assert not set(nouns[one]) & set(nouns[other]), (one, other)


def test_numbers_of_every_kind_are_drawn(mixed: list[Example]) -> None:
    numbers = [value for example in mixed for value in example.slots.values() if not isinstance(value, str)]
    assert any(isinstance(value, float) for value in numbers)
    assert any(value < 0 for value in numbers)
    assert all(value != int(value) for value in numbers if isinstance(value, float))
    steps = [example.slots["volume_step"] for example in mixed if "volume_step" in example.slots]
    assert {"up", "down"} <= set(steps)
    assert any(not isinstance(step, str) and step < 0 for step in steps)


@pytest.mark.parametrize(
    ("value", "spellings"),
    [
        (0, {"zero"}),
        (42, {"forty two", "forty-two"}),
        (-5, {"minus five"}),
        (100, {"a hundred", "one hundred"}),
        (2700, {"twenty seven hundred", "twenty-seven hundred", "two thousand seven hundred"}),
    ],
)
def test_spells_numbers_as_people_do(value: int, spellings: set[str]) -> None:
    assert {spell_integer(value, Random(seed)) for seed in range(80)} == spellings


def test_noise_leaves_slots_alone() -> None:
    slot = f"{COPIED}the o'neil pump of an area{END}"
    marked = f"turn the {slot} in my {CHOSEN}forty two{END} off"
    for seed in range(300):
        rng = Random(seed)
        rough = drop_small_words(marked, rng, free_text=False)
        rough = punctuate(misspell(rough, rng, frozenset()), rng)
        rough = add_fillers(rough, rng, open_end=False)
        assert slot in rough
        assert f"{CHOSEN}forty two{END}" in rough


def test_nothing_is_appended_to_free_text() -> None:
    marked = f"announce {COPIED}dinner is ready{END}"
    assert all(add_fillers(marked, Random(seed), open_end=True).endswith(END) for seed in range(200))


def test_answers_are_made_of_fragments_free_text_and_digits(training: list[Example]) -> None:
    fragments = fixed_fragments()
    assert fragments == fixed_fragments()
    assert len(fragments) == len(set(fragments))
    for example in training[:2000]:
        assert any(example.answer.startswith(piece) for piece in fragments if piece.startswith("{"))
        for slot, value in example.slots.items():
            opening = f',"{slot}":' + ('"' if isinstance(value, str) else "")
            assert opening in fragments or f',"{slot}":{json.dumps(value)}' in fragments, (slot, value)
