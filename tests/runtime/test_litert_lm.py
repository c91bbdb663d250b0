"""A small bundle, made here, packed and answered by LiteRT-LM; runs where litert-lm-api and its builder are."""

import json
import sys
import time
import unicodedata
from contextlib import closing

import pytest
from click.testing import CliRunner

pytest.importorskip("ai_edge_litert")
pytest.importorskip("sentencepiece")
pytest.importorskip("litert_lm")
pytest.importorskip("litert_lm_builder")

import sentencepiece

from benchmarks.gemma.flatgraph import ModelWriter
from benchmarks.gemma.litertlm import write_bundle
from benchmarks.gemma.network import add_signature
from edgeslm.agent.update.child import TrialProcess, TrialSettings
from edgeslm.agent.update.watchdog import Pulse, WatchedModel
from edgeslm.cli import wiring
from edgeslm.cli.main import cli
from edgeslm.errors import (
    BadRequestError,
    ConstraintError,
    ContextOverflowError,
    GraphCrashError,
    GraphHangError,
    InferenceError,
    MemoryShortError,
    ModelLoadError,
    ProcessorError,
    ProofError,
    UnsupportedOptionError,
)
from edgeslm.forge.bundle_package import draft_bundle
from edgeslm.models.packing import pack
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.litert_lm import load_bundle
from edgeslm.runtime.litert_lm_bundle import litert_lm_runtime
from edgeslm.runtime.loading import load_served
from edgeslm.runtime.trial import GraphTrial, trial_command
from edgeslm.schema.message import Options, PromptRequest
from tests.runtime.small_gemma import SHAPE, weights
from tests.runtime.test_tokenizer_sentencepiece import train

CONTEXT = 128
BEGIN, END = 1, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle")
    train(directory / "tokenizer.model", vocab_size=SHAPE.vocab, byte_fallback=False)
    writer = ModelWriter()
    for name, count in (("decode", 1), ("prefill_16", 16)):
        add_signature(writer, weights(), name, count=count, context=CONTEXT, ring=None, logits=count == 1)
    writer.write(directory / "graph.tflite")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    stops = [END, pieces.piece_to_id("<b>")]
    path = directory / "small.litertlm"
    write_bundle(
        path,
        directory / "tokenizer.model",
        directory / "graph.tflite",
        begin=BEGIN,
        stops=stops,
        context=CONTEXT,
    )
    return path


@pytest.fixture(scope="module")
def package(bundle):
    draft = draft_bundle(bundle, name="small", version="1.0.0", license_name="Apache-2.0")
    made = bundle.with_suffix(".slm")
    pack(draft, {bundle.name: bundle}, made)
    return wiring.install_package(str(made), bundle.parent / "store")


@pytest.fixture(scope="module")
def model(package, bundle):
    return load_served(package, cache_dir=bundle.parent / "cache")


def test_a_bundle_answers_and_the_receipt_counts_its_tokens(model):
    pieces = []
    answer = model.answer("set the lights", Options(max_tokens=8), on_text=pieces.append).generation
    assert answer.text
    assert "".join(pieces) == answer.text
    assert answer.prompt_tokens == model.count_tokens("set the lights") > 3
    assert 1 <= len(answer.token_ids) <= 8
    assert answer.finish_reason in {"length", "stop"}
    assert answer.first_token_s is not None
    assert answer.total_s >= answer.decode_s
    assert model.runtime_name.startswith("litert-lm-api 0.")
    again = model.answer("set the lights", Options(max_tokens=8)).generation
    assert again.text == answer.text


def test_an_answer_has_the_form_that_is_asked_for(model):
    chosen = model.answer("set the fan", Options(choices=("kitchen", "hallway (left)"))).generation
    assert chosen.text in {"kitchen", "hallway (left)"}
    assert chosen.finish_reason == "schema"
    schema = {
        "type": "object",
        "properties": {"area": {"enum": ["kitchen", "hallway"]}},
        "required": ["area"],
        "additionalProperties": False,
    }
    made = model.answer("set the fan", Options(json_schema=schema, max_tokens=40))
    assert made.data in [{"area": "kitchen"}, {"area": "hallway"}]
    cut = model.answer("set the fan", Options(regex="[a-z ]{60,70}", max_tokens=4))
    assert cut.generation.finish_reason == "length"
    assert cut.generation.closed is False


def test_sampling_repeats_with_its_seed(model):
    texts = [
        model.answer("set the", Options(temperature=2.0, seed=seed, max_tokens=12)).generation.text
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_and_a_reason_end_an_answer(model):
    whole = model.answer("set the lights", Options(max_tokens=12)).generation.text
    stop = whole[3:5]
    assert (
        model.answer("set the lights", Options(max_tokens=12, stop=(stop,))).generation.text
        == whole[: whole.find(stop)]
    )
    pieces = []
    ended = model.answer(
        "set the lights",
        Options(max_tokens=100),
        on_text=pieces.append,
        should_stop=lambda: "cancelled" if pieces else None,
    ).generation
    assert ended.finish_reason == "cancelled"
    assert len(ended.token_ids) < 100


def test_earlier_turns_come_before_the_prompt(model):
    first = model.answer("set the lights", Options(max_tokens=6, session="a"))
    second = model.answer("set the fan", Options(max_tokens=6, session="a"), turns=(first.turn,))
    alone = model.answer("set the fan", Options(max_tokens=6))
    assert second.generation.prompt_tokens > alone.generation.prompt_tokens
    assert alone.turn is None


@pytest.mark.parametrize(
    ("prompt", "options", "error", "told"),
    [
        ("set", {"grammar": 'start: "a"'}, UnsupportedOptionError, "option 'grammar' is not supported by small@1.0.0"),
        ("set", {"overflow": "slide"}, UnsupportedOptionError, "option 'overflow' other than 'error'"),
        ("set", {"regex": "((("}, ConstraintError, "the regular expression cannot be followed"),
        ("set", {"json_schema": {"type": "nonsense"}}, ConstraintError, "the schema cannot be followed"),
        (" \n", {}, BadRequestError, "empty prompt"),
        ("a\ud800", {}, BadRequestError, "not Unicode"),
        ("set<b>", {}, BadRequestError, "what marks turns or the end"),
        ("kitchen " * 200, {}, ContextOverflowError, "tokens, the model takes 96"),
        ("x" * 1_000_000, {}, ContextOverflowError, "1000000 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name_at_once(model, prompt, options, error, told):
    model.answer("set", Options(regex="a", max_tokens=2))  # loads the library for forms
    started = time.perf_counter()
    with pytest.raises(error, match=told):
        model.answer(prompt, Options(**options))
    assert time.perf_counter() - started < 1
    assert model.answer("set the lights", Options(max_tokens=2)).generation.text


def test_other_tasks_and_a_second_answer_within_one_are_refused(model):
    with pytest.raises(BadRequestError, match="it serves: generate"):
        model.infer(PromptRequest(id="a", task="classify", prompt="x", options=Options(choices=("a", "b"))))
    with pytest.raises(InferenceError, match="cannot set an answer aside"), model.set_aside():
        pass


def test_the_number_of_threads_changes_between_prompts(package):
    model = load_bundle(package)
    before = model.answer("set the lights", Options(max_tokens=4)).generation.text
    model.set_threads(2)
    assert model.threads == 2
    assert model.answer("set the lights", Options(max_tokens=4)).generation.text == before


def test_packed_weights_are_kept_in_a_place_of_the_bundles_own(model, package, bundle):
    sha256 = package.manifest.files["small.litertlm"].sha256
    places = [path.name for path in (bundle.parent / "cache").iterdir() if path.suffix == ".litert-lm"]
    assert [name[:32] for name in places] == [sha256[:32]]
    assert not list(package.directory.glob("*cache*"))


def test_a_bundle_that_says_something_else_is_refused(bundle, package, tmp_path):
    draft = draft_bundle(bundle, name="small", version="1.0.0", license_name="Apache-2.0")
    draft["graphs"][0]["proof"]["text"] = "something else"
    pack(draft, {bundle.name: bundle}, tmp_path / "other.slm")
    with pytest.raises(ProofError, match="golden vector: it says"):
        load_bundle(wiring.install_package(str(tmp_path / "other.slm"), tmp_path / "store"))


def test_a_broken_bundle_is_refused(bundle, tmp_path):
    broken = tmp_path / "small.litertlm"
    broken.write_bytes(bundle.read_bytes()[:4096])
    with pytest.raises(ModelLoadError, match=r"refuses small\.litertlm"):
        draft_bundle(broken, name="small", version="1.0.0", license_name="Apache-2.0")


def test_a_bare_bundle_is_packed_and_asked_from_the_command_line(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "made.slm"
    packed = CliRunner().invoke(
        cli, ["model", "pack", str(bundle), "--license", "Apache-2.0", "-o", str(made)]
    )
    assert packed.exit_code == 0, packed.output
    found = CliRunner().invoke(
        cli, ["model", "run", str(made), "set the lights", "--max-tokens", "4", "--json"]
    )
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["receipt"]["runtime"].startswith("litert-lm-api")
    assert unicodedata.is_normalized("NFC", result["text"])


def test_a_trial_in_a_process_of_its_own_and_a_watchdog_take_it_as_any_model(package, model, tmp_path):
    settings = TrialSettings("auto", 1, tmp_path / "cache", load_s=60.0, answer_s=60.0)
    trial = TrialProcess(package, settings, 512, memory_low=lambda: False)
    try:
        assert trial.load(lambda: False).graph == "small.litertlm"
        (answer,) = trial.answer(["set the lights"], lambda: False)
    finally:
        trial.close()
    watched = WatchedModel(model, Pulse(), 60.0)
    assert watched.answer("set the lights", Options()).generation.text == answer.text
    # What it took in the trial; where there was none, what the package says.
    assert GraphTrial(tmp_path / "cache", 1).model_bytes(package) > 10 << 20
    assert GraphTrial(tmp_path / "other", 1).model_bytes(package) == package.manifest.requires.ram_mb << 20


def check(package, directory, command=trial_command, **settings):
    tries = GraphTrial(directory, 1, command=command, **settings)
    load_served(package, cache_dir=directory, check=tries.check)
    return tries


def test_a_bundle_is_tried_in_a_process_of_its_own_before_it_is_opened(package, tmp_path):
    tries = check(package, tmp_path / "cache")
    known = tries.recall(package, package.manifest.graphs[0], litert_lm_runtime())
    assert known.needed_bytes == known.grown_bytes > 10 << 20
    # It is not tried again, but its memory is looked at.
    check(package, tmp_path / "cache", lambda: [sys.executable, "-c", "raise SystemExit(9)"])
    with pytest.raises(MemoryShortError, match="will need"):
        check(package, tmp_path / "cache", free_bytes=lambda: 10 << 20)


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        ("import os; os.kill(os.getpid(), 4)", ProcessorError, "illegal instruction"),
        ("import os; os.kill(os.getpid(), 9)", MemoryShortError, "ran out of memory"),
        ("import ctypes; ctypes.string_at(0)", GraphCrashError, "died of SIGSEGV"),
        ("import time; time.sleep(60)", GraphHangError, "did not load on litert-lm-api"),
    ],
)
def test_what_kills_the_trial_of_a_bundle_is_named(package, tmp_path, code, error, told):
    with pytest.raises(error, match=told):
        check(package, tmp_path, lambda: [sys.executable, "-c", code], patience_s=2.0)


def test_a_bundle_that_lacks_memory_is_told_so(package, tmp_path):
    with pytest.raises(MemoryShortError, match="ran out of memory"):
        check(package, tmp_path, free_bytes=lambda: 2 << 20)


def test_messages_go_through_the_bundles_own_form(model):
    system, turns = "set the fan", (Turn("set the", "lights"),)
    asked = model.answer("set the lights", Options(max_tokens=6), turns=turns, system=system)
    alone = model.answer("set the lights", Options(max_tokens=6), turns=turns)
    assert asked.generation.prompt_tokens > alone.generation.prompt_tokens
    counted = model.count_tokens("set the lights", turns=turns, system=system)
    assert asked.generation.prompt_tokens == counted
    with closing(model._bundle._conversation(1, turns, system)) as conversation:
        assert conversation.render_message_to_string("x").startswith(f"{system}set thelights")
    with pytest.raises(BadRequestError, match="what marks turns"):
        model.answer("set", Options(), system="a <b>")
    with pytest.raises(ContextOverflowError, match="tokens, the model takes 96"):
        model.answer("set", Options(), system="kitchen " * 200)


def test_a_bundle_without_a_place_for_a_system_message_says_so(package, monkeypatch):
    model = load_bundle(package)
    monkeypatch.setattr(model._bundle, "takes_system", False)
    with pytest.raises(BadRequestError, match=r"small@1.0.0 has no place for a message of the system"):
        model.answer("set", Options(), system="Be brief.")


def test_whoever_ends_an_answer_does_not_wait_for_its_rest(model):
    before = model.answer("set the lights", Options(max_tokens=4)).generation.text
    for _ in range(20):
        pieces = []
        ended = model.answer(
            "set the lights", Options(max_tokens=100), on_text=pieces.append, should_stop=lambda: "deadline"
        ).generation
        assert ended.finish_reason == "deadline"
        assert len(pieces) <= 1
    assert model.answer("set the lights", Options(max_tokens=4)).generation.text == before
