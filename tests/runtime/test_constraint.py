"""Answers held to a form, with the package that ships."""

import contextlib
import json
import re
import subprocess
import sys
import time

import jsonschema_rs
import llguidance
import pytest
import tokenizers

from benchmarks.runtime_schema import check
from edgeslm.errors import BadRequestError, ConstraintError, ConstraintMissingError, TooLargeError
from edgeslm.runtime.constraint import GrammarCompiler
from edgeslm.runtime.constraint_form import AnswerForm, form_of
from edgeslm.runtime.constraint_json import JsonPlace
from edgeslm.runtime.constraint_vocabulary import open_vocabulary
from edgeslm.runtime.tokenizer import JsonTokenizer
from edgeslm.schema.message import Options

COMMAND = "turn the kitchen lights to 40 percent"
INTENT = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassTurnOff", "HassLightSet"]},
        "area": {"type": "string"},
        "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["intent", "area", "brightness"],
    "additionalProperties": False,
}
REPLY = {
    "type": "object",
    "properties": {"reply": {"type": "string", "maxLength": 30}, "mood": {"enum": ["good", "bad"]}},
    "required": ["reply", "mood"],
    "additionalProperties": False,
}


@pytest.fixture
def forms(model):
    return GrammarCompiler(model._tokenizer, model.installed.manifest.stop_tokens)


def is_valid(schema, text):
    return jsonschema_rs.validator_for(schema).is_valid(json.loads(text))


def test_a_schema_keeps_what_the_model_knows_and_leaves_out_what_it_does_not_ask_for(model):
    answer = model.answer(COMMAND, Options(json_schema=INTENT))
    assert answer.data == {"intent": "HassLightSet", "area": "Kitchen", "brightness": 40}
    assert answer.generation.text == '{"intent":"HassLightSet","area":"Kitchen","brightness":40}'
    assert answer.generation.finish_reason == "schema"
    assert answer.generation.closed is None


def test_an_answer_without_a_form_is_what_it_was(model):
    before = model.answer(COMMAND, Options()).generation.token_ids
    model.answer(COMMAND, Options(json_schema=REPLY))
    after = model.answer(COMMAND, Options())
    assert after.generation.token_ids == before
    assert after.generation.forced_tokens == 0
    assert after.generation.closed is None


def test_random_schemas_are_followed_greedily_and_by_sampling_whole_and_cut_short(model):
    found = check(model, count=60, seed=5)
    assert found["faults"] == []
    assert found["schema_valid"] == 1.0
    assert found["answers_cut_short"] > 10


def test_what_the_form_leaves_no_choice_about_is_not_asked_of_the_model(model):
    answer = model.answer(COMMAND, Options(json_schema=REPLY)).generation
    assert answer.forced_tokens > len(answer.token_ids) // 2
    assert is_valid(REPLY, answer.text)


def test_a_form_with_one_answer_needs_no_model_at_all(model):
    answer = model.answer(COMMAND, Options(choices=("only this",))).generation
    assert (answer.text, answer.finish_reason) == ("only this", "schema")
    assert answer.forced_tokens == len(answer.token_ids)


@pytest.mark.parametrize(
    "choices", [("yes", "no"), ('say "hi"', "a\\b", "x\ny"), ("on", "only", "one"), ("grüße", "🦊")]
)
def test_one_of_the_choices_is_said(model, choices):
    for seed in range(3):
        answer = model.answer(COMMAND, Options(choices=choices, temperature=2.0, seed=seed))
        assert answer.generation.text in choices
        assert answer.data is None


@pytest.mark.parametrize("pattern", ["[a-z]{3,5}[0-9]", "(ab|cd)+\\.", "[A-Z]{2}-\\d{4}", "é+🦊"])
def test_a_regular_expression_is_matched_by_the_whole_answer(model, pattern):
    for limit in (None, 1, 4):
        answer = model.answer(COMMAND, Options(regex=pattern, max_tokens=limit, temperature=1.0, seed=3))
        assert re.fullmatch(pattern, answer.generation.text)


def test_a_grammar_is_followed(model):
    grammar = 'start: verb " the " noun\nverb: "open" | "close"\nnoun: /[a-z]{1,8}/'
    text = model.answer("open the door", Options(grammar=grammar)).generation.text
    assert re.fullmatch("(open|close) the [a-z]{1,8}", text)


def test_pieces_of_an_answer_with_a_form_join_to_it(model):
    for options in (
        Options(json_schema=INTENT),
        Options(json_schema=REPLY, temperature=2.0, seed=1),
        Options(json_schema=REPLY, max_tokens=7),
        Options(json_schema=INTENT, stop=(',"area',)),
    ):
        pieces = []
        answer = model.answer(COMMAND, options, on_text=pieces.append)
        assert "".join(pieces) == answer.generation.text
        assert len(pieces) > 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_an_answer_that_is_cut_short_is_completed_to_its_form(model, limit):
    answer = model.answer(COMMAND, Options(json_schema=INTENT, max_tokens=limit))
    assert answer.generation.finish_reason == "length"
    assert answer.generation.closed is True
    assert len(answer.generation.token_ids) == limit
    assert is_valid(INTENT, answer.generation.text)
    assert answer.data == json.loads(answer.generation.text)


@pytest.mark.parametrize("reason", ["cancelled", "deadline", "budget"])
def test_whatever_ends_an_answer_early_it_keeps_its_form(model, reason):
    for after in (0, 1, 3):
        pieces = []

        def stop(pieces=pieces, after=after):
            return reason if len(pieces) >= after else None

        answer = model.answer(COMMAND, Options(json_schema=INTENT), on_text=pieces.append, should_stop=stop)
        assert answer.generation.finish_reason == reason
        assert answer.generation.closed is True
        assert is_valid(INTENT, answer.generation.text)


def test_a_stop_string_ends_an_answer_and_its_form_is_completed(model):
    answer = model.answer(COMMAND, Options(json_schema=INTENT, stop=('"area',)))
    assert answer.generation.finish_reason == "stop"
    assert answer.generation.closed is True
    assert answer.data == {"intent": "HassLightSet", "area": "", "brightness": 0}


def test_an_answer_that_cannot_be_completed_in_time_says_so(model):
    endless = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 20_000}
    answer = model.answer(COMMAND, Options(json_schema=endless, max_tokens=4))
    assert answer.generation.closed is False
    assert answer.data is None


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ('{"intent":"HassTurnOff"', ',"area":"","brightness":0}'),
        ('{"intent":"HassTurnO', None),
        ('{"intent":"HassTurnOn","area":"K\\', None),
        ('{"intent":"HassTurnOn","area":"K\\u00', None),
        ('{"intent":"HassTurnOn","area":"","brightness":1', "}"),
        ('{"intent":"HassTurnOn","area":"","brightness":1}', ""),
    ],
)
def test_a_completion_closes_what_is_open_and_no_more(forms, text, added):
    completion = forms.compile(form_of(Options(json_schema=INTENT))).complete(text)
    assert is_valid(INTENT, text + completion)
    if added is not None:
        assert completion == added


def test_what_no_completion_can_mend_is_told(forms):
    assert forms.compile(AnswerForm("regex", "(ab)+c")).complete("abx") is None


def test_tokens_beyond_the_vocabulary_are_not_allowed(forms):
    matcher = forms.compile(AnswerForm("choices", '["a","b"]')).start()
    assert not matcher.allows(10**6)
    assert len(matcher.allowed()) == 2
    with pytest.raises(ConstraintError, match="cannot be followed"):
        matcher.accept(matcher._tokens.count - 1)


def bomb(levels):
    """Each level doubles the next: 2**levels alternatives, written down in a few lines."""
    defs = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{levels}": {"type": "string"}}}


INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "object", "additionalProperties": INTEGER, "minProperties": 2}, '{"a":1}'),
        ({"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "minProperties": 1}, "{}"),
        (
            {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^a": {"minimum": 5}}},
            '{"a":1}',
        ),
        ({"properties": {"a": INTEGER}, "required": ["b"], "additionalProperties": False}, "{}"),
        ({"dependentRequired": {"a": ["b"]}}, '{"a":1}'),
        ({"type": "object", "unevaluatedProperties": False}, '{"a":1}'),
        ({"type": "object", "propertyNames": {"pattern": "b"}}, '{"a":1}'),
        ({"type": "array", "contains": INTEGER}, "[]"),
        ({"type": "array", "uniqueItems": True}, "[1,1]"),
        ({"prefixItems": [INTEGER], "items": False}, "[1,2]"),
        ({"$ref": "#/$defs/x", "type": "string", "$defs": {"x": {"minLength": 3}}}, '"a"'),
        ({"enum": [1, "a"], "type": "string"}, "1"),
        ({"type": "string", "pattern": "^a", "minLength": 3}, '"a"'),
        ({"type": "string", "format": "ipv4", "maxLength": 7}, '"100.100.100.100"'),
        ({"type": "number", "minimum": 0.5, "multipleOf": 0.25}, "0.25"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "1"),
        ({"if": INTEGER, "then": {"minimum": 3}}, "1"),
        ({"not": INTEGER}, "1"),
    ],
)
def test_a_keyword_is_followed_or_refused_but_never_passed_over(forms, schema, wrong):
    assert not is_valid(schema, wrong)
    try:
        grammar = forms.compile(form_of(Options(json_schema=schema)))
    except ConstraintError:
        return
    assert grammar.complete(wrong) != ""


UNUSABLE = {
    "nothing fits": Options(json_schema={"type": "integer", "minimum": 5, "maximum": 3}),
    "two types at once": Options(json_schema={"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "refers to itself": Options(json_schema={"$ref": "#"}),
    "never ends": Options(
        json_schema={
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}},
        }
    ),
    "refers to nothing": Options(json_schema={"$ref": "#/$defs/missing"}),
    "refers to the net": Options(json_schema={"$ref": "https://example.com/schema.json"}),
    "unknown type": Options(json_schema={"type": "strin"}),
    "keyword that is not followed": Options(json_schema={"not": {"type": "string"}}),
    "bad pattern": Options(json_schema={"type": "string", "pattern": "(a"}),
    "bad expression": Options(regex="(a"),
    "look-around": Options(regex="(?=a)b"),
    "empty class": Options(regex="[^\\x00-\\U0010ffff]"),
    "no start": Options(grammar="stop: /a/"),
    "unknown rule": Options(grammar="start: foo"),
    "unknown token id": Options(grammar="start: <[99999]>"),
    "multiples of a huge number": Options(json_schema={"type": "integer", "multipleOf": 1_999_993}),
    "multiples of several at once": Options(
        json_schema={"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 89, 83, 79)]}
    ),
    "multiples of a huge number, in a grammar": Options(grammar='start: %json {"multipleOf": 1999993}'),
    "no grammar": Options(grammar="\x00((("),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_form_that_cannot_be_followed_is_refused_at_once_and_the_model_is_unharmed(model, name):
    model.answer(COMMAND, Options(json_schema=INTENT))  # the library is loaded
    started = time.thread_time()
    with pytest.raises(ConstraintError) as caught:
        model.answer(COMMAND, UNUSABLE[name])
    assert time.thread_time() - started < 0.1
    assert caught.value.kind == UNUSABLE[name].answer_form
    assert caught.value.code == "bad_request"
    assert model.answer(COMMAND, Options(json_schema=INTENT)).data["brightness"] == 40


@pytest.mark.parametrize(
    "options",
    [
        Options(json_schema=bomb(24), max_tokens=20),
        Options(json_schema={"enum": [f"v{n}" for n in range(2000)]}, max_tokens=20),
        Options(json_schema={"type": "string", "pattern": "^((a|b|cd){1,500}x){1,500}$"}, max_tokens=20),
        Options(json_schema={"type": "string", "minLength": 10**9}, max_tokens=20),
        Options(regex="(a{1,1000}){1,1000}", max_tokens=20),
        Options(regex="(.*a.{0,200}){1,50}", max_tokens=40, temperature=2.0, seed=1),
        Options(regex="(a?){500}a{500}", max_tokens=20),
        Options(grammar='start: a a a a a a\na: "x" a | a a | "x" |', max_tokens=20),
    ],
)
def test_a_bomb_is_either_followed_or_refused_and_takes_bounded_time(model, options):
    started = time.thread_time()
    with contextlib.suppress(ConstraintError):
        assert model.answer(COMMAND, options).generation.text
    assert time.thread_time() - started < 2.0
    assert model.answer(COMMAND, Options(json_schema=INTENT)).data["brightness"] == 40


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex contradict each other"),
        ({"choices": ["a"], "grammar": "start: /a/"}, "choices and grammar contradict each other"),
        ({"choices": []}, "at least 1"),
        ({"choices": [""]}, "at least 1"),
        ({"choices": ["a"] * 257}, "at most 256"),
        ({"regex": ""}, "at least 1"),
        ({"regex": "a" * 4097}, "at most 4096"),
        ({"json_schema": [1]}, "json_schema"),
        ({"json_schema": {"enum": ["x" * 40_000]}}, "at most 16384"),
        ({"json_schema": {"const": float("nan")}}, "not JSON"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(fields, words):
    with pytest.raises(ValueError, match=words):
        Options.model_validate(fields)


def test_a_schema_nested_too_deep_is_refused_without_recursion():
    schema: dict = {}
    for _ in range(20_000):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="nested deeper than 64"):
        Options(json_schema=schema)


def test_other_bad_input_is_named_as_well(model):
    with pytest.raises(BadRequestError, match="not Unicode"):
        model.answer("lone \ud800 surrogate", Options())
    with pytest.raises(TooLargeError):
        model.answer("x" * 1_048_576, Options(json_schema=INTENT))
    with pytest.raises(BadRequestError, match="empty"):
        model.answer(" ", Options(json_schema=INTENT))


def test_a_device_without_the_library_refuses_by_name(model, forms, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConstraintMissingError, match="'regex' is not supported on this device"):
        forms.compile(AnswerForm("regex", "a"))
    assert model.answer(COMMAND, Options()).data


def test_a_form_that_cannot_be_followed_is_told_before_the_vocabulary_is_laid_out(forms):
    with pytest.raises(ConstraintError, match="Unsatisfiable"):
        forms.compile(AnswerForm("json_schema", '{"type":"integer","minimum":5,"maximum":3}'))
    with pytest.raises(ConstraintError, match="no answer has the form"):
        forms.compile(AnswerForm("regex", r"[^\s\S]"))
    assert forms._tokenizer is None
    assert forms.compile(AnswerForm("regex", "[0-9]{2}")).start().allowed().any()


def test_the_first_form_may_name_a_token_that_only_the_vocabulary_knows(forms, model):
    name = sorted(model._tokenizer.special_tokens())[0]
    assert re.fullmatch(r"<.+>", name)
    forms.compile(AnswerForm("grammar", f'start: "a" {name}'))


def test_the_same_form_is_made_ready_once_and_old_ones_go(forms):
    first = forms.compile(AnswerForm("regex", "a+"))
    assert forms.compile(AnswerForm("regex", "a+")) is first
    for number in range(20):
        forms.compile(AnswerForm("regex", f"b{{{number + 1}}}"))
    assert len(forms._kept) == 8
    assert forms.compile(AnswerForm("regex", "a+")) is not first


@pytest.mark.parametrize(
    ("begun", "more", "overflows"),
    [
        (b'{"a":1e30', b"7", False),
        (b'{"a":1e30', b"9", True),
        (b'{"a":-1234E+30', b"7", True),
        (b'{"a":1e-99', b"9", False),
        (b'{"a":1e00000', b"999", True),
        (b'{"a":1e00000', b"99", False),
        (b'{"a":1.5', b"e999", True),
        (b'{"a":"1e30', b"9", False),
        (b"[true,1e30,2", b"9", False),
        (b"9" * 308, b"9", True),
        (b"1e3", b"0,1e999", False),
    ],
)
def test_a_number_that_no_double_holds_is_seen_coming(begun, more, overflows):
    place = JsonPlace()
    place.feed(begun)
    assert place.overflows(more) is overflows


def test_numbers_that_no_computer_holds_are_no_data(model):
    answer = model.answer(COMMAND, Options(grammar='start: "{\\"a\\":1e999}"'))
    assert answer.generation.text == '{"a":1e999}'
    assert answer.data is None


def test_nobody_pays_for_forms_who_does_not_ask_for_one(store_dir, home_command):
    code = (
        "import sys; from pathlib import Path; from edgeslm.cli import wiring;"
        "from edgeslm.runtime.model import load_model; from edgeslm.schema.message import Options;"
        f"model = load_model(wiring.install_package('builtin:home-command', Path({str(store_dir)!r})));"
        f"model.answer({COMMAND!r}, Options()); assert 'llguidance' not in sys.modules;"
        f"model.answer({COMMAND!r}, Options(choices=('a', 'b'))); assert 'llguidance' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_lent_tokenizer_is_the_one_that_the_library_would_read_itself(model):
    stops = model.installed.manifest.stop_tokens
    lent = open_vocabulary(llguidance, model._tokenizer, stops)
    read = llguidance.LLTokenizer(model._tokenizer.to_json(), eos_token=list(stops))
    assert lent.vocab_size == read.vocab_size
    for token in range(read.vocab_size):
        assert lent.decode_bytes([token]) == read.decode_bytes([token])
        assert lent.is_special_token(token) == read.is_special_token(token)
    for text in ('{"intent":"HassTurnOn","a b":12}', " grüße  🦊\n", '"x', "\x00\x7f"):
        assert lent.tokenize_str(text) == read.tokenize_str(text) == model._tokenizer.encode(text)


@pytest.fixture
def words_tokenizer(tmp_path):
    """A vocabulary of words in SentencePiece's form, with bytes to fall back to."""
    vocab = {"<pad>": 0, "</s>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    vocab |= {
        text: len(vocab) + at
        for at, text in enumerate(("▁", "a", "b", "▁a", "ab", '"', '":', "{", "}", "🦊"))
    }
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("▁", "a"), ("a", "b")], byte_fallback=True))
    built.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    built.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    built.add_special_tokens(["<pad>", "</s>"])
    built.save(str(tmp_path / "tokenizer.json"))
    return JsonTokenizer(tmp_path / "tokenizer.json")


def test_words_with_bytes_to_fall_back_to_are_lent_as_well(words_tokenizer):
    said = words_tokenizer.token_bytes()
    assert (said[2], said[257], said[258], said[261]) == (b"\x00", b"\xff", b" ", b" a")
    lent = open_vocabulary(llguidance, words_tokenizer, [1])
    read = llguidance.LLTokenizer(words_tokenizer.to_json(), eos_token=[1])
    assert [lent.decode_bytes([n]) for n in range(268)] == [read.decode_bytes([n]) for n in range(268)]
    grammar = GrammarCompiler(words_tokenizer, [1]).compile(AnswerForm("choices", '[" ab","é"]'))
    assert grammar.complete(" a") == "b"
    assert sorted(grammar.start().allowed()) == [0x20 + 2, 0xC3 + 2, 258, 261]


def test_a_decoder_of_another_form_is_left_to_the_library(tmp_path):
    built = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}))
    built.decoder = tokenizers.decoders.WordPiece()
    built.save(str(tmp_path / "tokenizer.json"))
    assert JsonTokenizer(tmp_path / "tokenizer.json").token_bytes() is None
