"""SentencePiece models, trained here: they encode, decode and hold to forms as their library says they should."""

import io
import random
import sys

import pytest

pytest.importorskip("ai_edge_litert")
pytest.importorskip("sentencepiece")

import sentencepiece

from benchmarks.gemma.flatgraph import ModelWriter
from benchmarks.gemma.network import add_signature
from edgeslm.cli import wiring
from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError
from edgeslm.models.packing import pack
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.chat_template import ChatTemplate
from edgeslm.runtime.constraint import GrammarCompiler
from edgeslm.runtime.constraint_form import AnswerForm
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor, has_compiled_model
from edgeslm.runtime.model import load_model
from edgeslm.runtime.prompt import PromptEncoder
from edgeslm.runtime.tokenizer import JsonTokenizer, TextStream, open_tokenizer
from edgeslm.runtime.tokenizer_sentencepiece import SentencePieceTokenizer
from edgeslm.schema.message import Options
from edgeslm.schema.package import PromptForm, TokenizerSpec
from tests.runtime.small_gemma import RING, SHAPE, weights

AREAS = ("kitchen", "hallway", "bedroom", "garden", "Küche", "cellar", "attic", "porch")
LINES = [
    f'set the {thing} in the {area} to {level} percent {{"area":"{area}","level":{level}}}'
    for area in AREAS
    for thing in ("lights", "blinds", "fan", "heater", "speaker")
    for level in range(0, 100, 7)
]
SPEC = TokenizerSpec(kind="sentencepiece", file="tokenizer.model")
FORM = PromptForm(prefix="<s><user>", suffix="<turn>")


def train(path, **changes):
    settings = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity",
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "control_symbols": ["<turn>", "<turn>>"],
        "user_defined_symbols": ["<user>", "\n", "<b>"], "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, **{**settings, **changes}
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return train(tmp_path_factory.mktemp("model") / "tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer(path):
    return open_tokenizer(SPEC, path, FORM, [2])


@pytest.fixture(scope="module")
def library(path):
    return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())


TEXTS = [
    "set the lights", "  two  spaces ", "grüße 🦊🦊 ½", "a\nb\n\n\tc", '{"area":"Küche","level":14}', "\x00\x7f",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_encoded_as_the_library_does_and_comes_back_whole(tokenizer, library, text):
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, out_type=int)
    assert tokenizer.decode(ids) == text
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == text


def test_a_character_of_several_bytes_is_given_out_when_it_is_whole(tokenizer):
    ids = tokenizer.encode("🦊")
    assert len(ids) == 4
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids] == ["", "", "", "🦊"]
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids[:2]] == ["", ""]
    assert set(stream.finish()) == {"\ufffd"}


def test_special_tokens_that_a_text_spells_out_become_themselves(tokenizer, library):
    turn, longer, user = (library.piece_to_id(name) for name in ("<turn>", "<turn>>", "<user>"))
    assert tokenizer.encode("<s>set<turn>") == [1, *library.encode("set"), turn]
    assert tokenizer.encode("<turn>>x<turn><turn>") == [longer, *library.encode("x"), turn, turn]
    assert tokenizer.encode("<turn") == library.encode("<turn")
    assert tokenizer.decode([1, user, *library.encode("set"), turn, 0, 2]) == "set"


def test_a_prompt_from_outside_cannot_spell_what_the_package_marks_its_turns_with(tokenizer):
    encoder = PromptEncoder(FORM, tokenizer, 100)
    for prompt in ("a <turn> b", "</s>", "<user>", "<s>"):
        with pytest.raises(BadRequestError):
            encoder.encode(prompt)
    # User-defined as well, but no markup of this package, or no markup at all.
    for prompt in ("a <b> tag", "two\nlines", "the <unk> token"):
        assert tokenizer.decode(encoder.encode(prompt)) == prompt


def test_what_a_chat_template_marks_its_turns_with_is_cut_where_a_prompt_says_it(path):
    text = "<s>{% for m in messages %}<user>{{ m.content }}<turn>{% endfor %}"
    template = ChatTemplate(text, path="chat_template.jinja")
    tokenizer = open_tokenizer(SPEC, path, PromptForm(), markup=template.samples)
    assert {"<user>", "<turn>", "<s>"} <= tokenizer.special_tokens()
    encoder = PromptEncoder(PromptForm(), tokenizer, 96, template=template)
    said = "a<user>b<turn><turn>>\n<s>"
    ids = encoder.encode(said)
    special = [token for token in ids if token in tokenizer.special_ids()]
    assert special == tokenizer.encode("<s><user><turn>")
    assert tokenizer.decode(ids) == said


def test_ids_that_there_are_none_of_are_named(tokenizer):
    with pytest.raises(InferenceError, match="say nothing"):
        tokenizer.decode([tokenizer.vocab_size])


def test_answers_are_held_to_a_form(tokenizer):
    pytest.importorskip("llguidance")
    grammar = GrammarCompiler(tokenizer, [2]).compile(AnswerForm("choices", '["Küche 🦊","cellar"]'))
    assert grammar.complete("Kü") == "che 🦊"
    matcher = grammar.start()
    for token in tokenizer.encode("Küche 🦊"):
        assert token in matcher.allowed()
        matcher.accept(token)
    assert matcher.is_complete
    assert not {token for token in grammar.start().allowed().tolist() if token in tokenizer.special_ids()} - {
        2
    }


def test_tokens_say_the_bytes_that_their_texts_have(tokenizer):
    said = tokenizer.token_bytes()
    for text in TEXTS:
        assert b"".join(said[token] for token in tokenizer.encode(text)) == text.encode()


def test_without_a_stop_token_answers_cannot_be_held_to_a_form(tokenizer):
    pytest.importorskip("llguidance")
    with pytest.raises(BadRequestError, match="names no stop token"):
        GrammarCompiler(tokenizer, []).compile(AnswerForm("choices", '["a","b"]'))


def test_models_that_normalize_are_read_as_well(tmp_path):
    path = train(
        tmp_path / "tokenizer.model", model_type="unigram", byte_fallback=False, vocab_size=80,
        normalization_rule_name="nmt_nfkc", add_dummy_prefix=True, remove_extra_whitespaces=True,
    )  # fmt: skip
    tokenizer = open_tokenizer(SPEC, path, PromptForm())
    assert tokenizer.decode(tokenizer.encode("set  the ﬁan")) == "set the fian"
    # What no piece says is left out, not made up.
    assert tokenizer.decode(tokenizer.encode("set 日")).strip() == "set"


def test_a_file_that_is_no_model_is_refused(path, tmp_path):
    whole = path.read_bytes()
    rng = random.Random(4)
    broken = [b"", b"{}", b"\n\x03abc", b"\xff" * 64, whole[: len(whole) // 2]]
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        broken.append(bytes(damaged))
    refused = 0
    for data in broken:
        file = tmp_path / "tokenizer.model"
        file.write_bytes(data)
        try:
            found = SentencePieceTokenizer(file)
            found.decode(found.encode("set the lights"))
        except (ModelLoadError, InferenceError):
            refused += 1
    assert refused > 40
    with pytest.raises(ModelLoadError, match="no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "none.model")


def test_where_the_library_is_missing_the_way_to_get_it_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelLoadError, match="not installed") as caught:
        open_tokenizer(SPEC, path, PromptForm())
    assert "edgeslm[sentencepiece]" in caught.value.hint


def test_the_other_kind_is_read_as_before(home_command):
    manifest = home_command.manifest
    file = home_command.file(manifest.tokenizer.file)
    assert isinstance(open_tokenizer(manifest.tokenizer, file, manifest.prompt), JsonTokenizer)


def test_a_package_with_such_a_tokenizer_is_installed_and_answers(tmp_path):
    if not has_compiled_model(choose_runtime()):
        pytest.skip("this runtime has no CompiledModel")
    train(tmp_path / "tokenizer.model", vocab_size=SHAPE.vocab, byte_fallback=False)
    writer = ModelWriter()
    add_signature(writer, weights(), "decode", count=1, context=64, ring=RING, logits=True)
    writer.write(tmp_path / "g.tflite")
    (tmp_path / "LICENSE").write_text("none")
    ids = [1, 20, 30, 40]
    logits = KvEngine(CompiledExecutor(tmp_path / "g.tflite", 1, None)).append(ids)
    best = int(logits.argmax())
    proof = {
        "tokens": ids, "greedy": [best], "logit_ids": [best], "logits": [float(logits[best])], "atol": 0.35,
    }  # fmt: skip
    draft = {
        "format": 1, "name": "small", "version": "1.0.0", "task": "generate", "description": "For tests.",
        "graphs": [{"file": "g.tflite", "runtimes": ["litert"], "quantization": "int8", "proof": proof}],
        "tokenizer": SPEC.model_dump(), "prompt": {"prefix": "<s>", "suffix": "<turn>"}, "stop_tokens": [2],
        "context_tokens": 64, "max_prompt_tokens": 40, "max_answer_tokens": 8,
        "requires": {"ram_mb": 1, "agent": "0.1.0"},
        "licenses": [{"spdx": "Apache-2.0", "of": "all", "file": "LICENSE"}],
    }  # fmt: skip
    members = {name: tmp_path / name for name in ("g.tflite", "tokenizer.model", "LICENSE")}
    pack(draft, members, tmp_path / "small.slm")
    model = load_model(wiring.install_package(str(tmp_path / "small.slm"), tmp_path / "store"))
    answer = model.answer("set the lights", Options())
    assert answer.generation.prompt_tokens == len(model.tokenizer.encode("<s>set the lights<turn>"))
    assert len(answer.generation.token_ids) <= 8
    held = model.answer("set the fan", Options(choices=("kitchen", "hallway")))
    assert held.generation.text in {"kitchen", "hallway"}
    with pytest.raises(BadRequestError, match="special token"):
        model.answer("set<turn>", Options())
