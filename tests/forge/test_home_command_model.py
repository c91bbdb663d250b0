"""The tokenizer, network and graphs of `home-command`, on tiny random networks.

How good the trained model is says `evaluation.json`, not a test.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from edgeslm.forge.home_command import evaluate, train  # noqa: E402
from edgeslm.forge.home_command.network import (  # noqa: E402
    HomeCommandNetwork,
    NetworkConfig,
    generate_greedily,
)
from edgeslm.forge.home_command.tokenizer import (  # noqa: E402
    BEGIN_ID,
    END_ID,
    SEPARATOR_ID,
    SPECIAL_TOKENS,
    decode,
    encode_answer,
    encode_prompt,
    load_tokenizer,
    prompt_text,
    train_tokenizer,
)

FRAGMENTS = ['{"intent":"HassTurnOn"', ',"area":"', ',"name":"', '"}', "}", '"']
PAIRS = [
    ("turn on the kitchen lamp", '{"intent":"HassTurnOn","name":"Kitchen Lamp"}'),
    ("switch on the garden light", '{"intent":"HassTurnOn","name":"Garden Light"}'),
    ("lights on in the kitchen", '{"intent":"HassTurnOn","area":"Kitchen"}'),
] * 20
TINY = NetworkConfig(
    vocabulary_size=384, width=32, layer_count=2, head_count=2, inner_width=64, context_tokens=48
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = train_tokenizer((text for pair in PAIRS for text in pair), FRAGMENTS, vocabulary_size=384)
    assert trained.get_vocab_size() <= 384
    return trained


@pytest.fixture(scope="module")
def network() -> HomeCommandNetwork:
    torch.manual_seed(3)
    made = HomeCommandNetwork(TINY)
    with torch.no_grad():
        for parameter in made.parameters():
            # Larger than at the start of a training, so that the likeliest token is clear after int8 as well,
            # and norms away from one, so that a norm left out or swapped shows.
            spread = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * spread if parameter.dim() == 1 else 0.3 * spread)
    return made.eval()


# -- tokenizer ---------------------------------------------------------------


def test_special_tokens_have_the_ids_that_graphs_and_packages_rely_on(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_every_token_has_an_id_of_its_own_also_in_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    vocabulary = tokenizer.get_vocab()
    assert len(set(vocabulary.values())) == len(vocabulary)
    stored = {token["content"]: token["id"] for token in json.loads(path.read_text())["added_tokens"]}
    assert stored == {content: vocabulary[content] for content in (*SPECIAL_TOKENS, *FRAGMENTS)}
    assert load_tokenizer(path).get_vocab() == vocabulary


@pytest.mark.parametrize(
    "text",
    [
        "",
        "turn on the lamp",
        " two  spaces ",
        "größe 日本 🙂 e\u0301",
        "tab\tline\n",
        '{"a":"}"}',
        "<s>hi<sep>",
        "é1a2",
    ],
)
def test_decodes_to_what_was_encoded(tokenizer: Tokenizer, text: str) -> None:
    assert decode(tokenizer, tokenizer.encode(text).ids) == text


def test_decodes_to_what_was_encoded_for_any_text(tokenizer: Tokenizer) -> None:
    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text: str) -> None:
        assert decode(tokenizer, tokenizer.encode(text).ids) == text

    check()


def test_a_word_and_its_title_case_differ_in_the_first_token_only(tokenizer: Tokenizer) -> None:
    lower, title = tokenizer.encode("kitchen").tokens, tokenizer.encode("Kitchen").tokens
    assert (lower[0], title[0]) == ("k", "K")
    assert lower[1:] == title[1:]
    assert tokenizer.encode(" kitchen").tokens[1:] == lower[1:]


def test_a_fragment_is_one_token(tokenizer: Tokenizer) -> None:
    for fragment in FRAGMENTS:
        assert len(tokenizer.encode(fragment).ids) == 1


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2045").tokens == ["2", "0", "4", "5"]


def test_text_cannot_forge_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for candidate in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = encode_prompt(candidate, "a<sep>b</s>")
        assert ids[0] == BEGIN_ID
        assert ids[-1] == SEPARATOR_ID
        assert not {0, 1, 2, 3} & set(ids[1:-1])


def test_an_answer_ends_with_the_end_token(tokenizer: Tokenizer) -> None:
    ids = encode_answer(tokenizer, PAIRS[0][1])
    assert ids[-1] == END_ID
    assert decode(tokenizer, ids) == PAIRS[0][1]


def test_the_prompt_is_lower_case_with_single_spaces() -> None:
    assert prompt_text("  Turn  ON\tthe Lamp\n") == "turn on the lamp"


def test_refuses_a_vocabulary_without_room_for_every_byte() -> None:
    with pytest.raises(ValueError, match="at least 266"):
        train_tokenizer(["a"], FRAGMENTS, vocabulary_size=260)


# -- training ----------------------------------------------------------------


def test_an_example_is_text_then_answer_with_only_the_answer_marked(tokenizer: Tokenizer) -> None:
    examples = train.encode_examples(tokenizer, PAIRS[:2], context_tokens=160)
    batch = train.collate(examples, train.np.arange(2))
    text, answer = PAIRS[0]
    row = encode_prompt(tokenizer, text) + encode_answer(tokenizer, answer)
    assert batch.tokens[0, : len(row)].tolist() == row
    assert batch.tokens.shape[1] % 8 == 0
    marked = batch.tokens[0][batch.is_answer[0]].tolist()
    assert marked == encode_answer(tokenizer, answer)
    assert not (batch.is_text & batch.is_answer).any()


def test_leaves_out_examples_longer_than_the_context(tokenizer: Tokenizer) -> None:
    assert len(train.encode_examples(tokenizer, PAIRS[:3], context_tokens=5)) == 0


def test_batches_hold_no_more_tokens_than_asked_and_every_example_once(tokenizer: Tokenizer) -> None:
    examples = train.encode_examples(tokenizer, PAIRS, context_tokens=160)
    batches = train.iterate_batches(examples, batch_tokens=128, seed=0)
    seen = 0
    while seen < len(examples):
        batch = next(batches)
        assert batch.tokens.numel() <= 128
        seen += len(batch.tokens)
    assert seen == len(examples)


def test_learns_a_handful_of_commands_and_resumes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = HomeCommandNetwork(TINY)
    examples = train.encode_examples(tokenizer, PAIRS, TINY.context_tokens)
    plan = train.TrainingSettings(
        budget_s=90,
        maximum_steps=120,
        batch_tokens=512,
        matrix_rate=0.02,
        other_rate=0.02,
        warm_up_steps=5,
        report_steps=10_000,
        threads=1,
        compile_layers=False,
    )
    checkpoint = tmp_path / "checkpoint.pt"
    train.train(learner, examples, examples, dataclasses.replace(plan, maximum_steps=60), checkpoint)
    first = [parameter.clone() for parameter in learner.parameters()]

    again = HomeCommandNetwork(TINY)
    train.train(
        again, examples, examples, dataclasses.replace(plan, maximum_steps=60), checkpoint, resume=True
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again.parameters(), strict=True))
    train.train(again, examples, examples, plan, checkpoint, resume=True)
    assert train.teacher_forced_exact(again, examples).all()


def test_weights_come_back_with_the_shape_of_the_network(network: HomeCommandNetwork, tmp_path: Path) -> None:
    train.save_weights(network, tmp_path / "weights.safetensors")
    loaded = train.load_weights(tmp_path / "weights.safetensors")
    tokens = torch.arange(12)[None]
    assert loaded.config == TINY
    assert torch.equal(loaded(tokens), network(tokens))


def test_padding_behind_a_sequence_changes_nothing_before_it(network: HomeCommandNetwork) -> None:
    tokens = torch.arange(4, 14)[None]
    padded = torch.nn.functional.pad(tokens, (0, 6))
    assert torch.allclose(network(padded)[:, :10], network(tokens), atol=1e-5)


# -- scoring -----------------------------------------------------------------


def test_scores_meaning_and_not_spelling() -> None:
    cases = [evaluate.Case("a", {"intent": "I", "x": 1}), evaluate.Case("b", {"intent": "I", "x": 2})]
    answers = evaluate.Answers(['{"x": 1, "intent": "I"}', '{"intent":"I","x":3}'])
    figures = evaluate.score(cases, answers)
    assert (figures["exact"], figures["intent"]) == (0.5, 1.0)
    assert [miss["text"] for miss in figures["misses"]] == ["b"]


def test_an_answer_that_is_no_json_object_is_a_miss() -> None:
    assert evaluate.parse_answer("[1]") is None
    assert evaluate.parse_answer('{"intent":') is None


# -- graphs ------------------------------------------------------------------


@pytest.mark.parametrize("composites", [True, False])
def test_litert_model_has_the_logits_of_the_network(network: HomeCommandNetwork, composites: bool) -> None:
    pytest.importorskip("litert_torch")
    from edgeslm.forge.home_command.convert import MASKED, to_litert_model  # noqa: PLC0415

    model = to_litert_model(network, composites)
    from litert_torch.generative.layers import kv_cache  # noqa: PLC0415

    tokens = torch.randint(4, 384, (1, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(20, dtype=torch.int32)
    mask = torch.where(torch.arange(48)[None] <= positions[:, None], 0.0, MASKED)[None, None]
    cache = kv_cache.KVCache.from_model_config(48, model.config, kv_layout=kv_cache.KV_LAYOUT_TRANSPOSED)
    logits = model(tokens=tokens, input_pos=positions, kv_cache=cache, mask=mask)["logits"]
    with torch.no_grad():
        assert (logits - network(tokens)).abs().max() < 1e-3


def test_the_stand_in_for_tensorflow_does_not_stay() -> None:
    pytest.importorskip("litert_torch")
    import importlib.util  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from edgeslm.forge.home_command.convert import litert_config  # noqa: PLC0415

    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow itself is installed")
    litert_config(TINY, composites=True)
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("composites", "per_channel"), [(True, True), (False, False)])
def test_int8_graph_answers_as_the_float_network(
    network: HomeCommandNetwork, tmp_path: Path, composites: bool, per_channel: bool
) -> None:
    pytest.importorskip("litert_torch")
    from edgeslm.forge.home_command.convert import convert  # noqa: PLC0415

    graph = tmp_path / "tiny.tflite"
    convert(network, graph, composites=composites, per_channel=per_channel, prefill_lengths=(8, 16))
    runner = evaluate.GraphRunner(graph)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(4, 384, (n,), generator=generator).tolist() for n in (1, 2, 9, 17, 30, 44)]
    expected = generate_greedily(network, prompts, END_ID, max_tokens=4)
    got = [runner.answer(prompt, max_tokens=4) for prompt in prompts]
    # The first token of each: later ones of a random network hang on ties that int8 may break either way.
    assert [answer[:1] for answer in got] == [answer[:1] for answer in expected]
    agreement = sum(a == b for a, b in zip(got, expected, strict=True))
    assert agreement >= len(prompts) - 1
