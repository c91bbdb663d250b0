"""Real inference with the package that ships, on whichever runtime is installed."""

import json
from dataclasses import replace

import pytest

from edgeslm.errors import (
    BadRequestError,
    InferenceError,
    ModelLoadError,
    ProofError,
    RuntimeMissingError,
    TooLargeError,
)
from edgeslm.models.package import parse_golden
from edgeslm.runtime.backend import choose_runtime, installed_runtimes
from edgeslm.runtime.engine import KvEngine
from edgeslm.runtime.executor import CompiledExecutor, SignatureExecutor, has_compiled_model
from edgeslm.runtime.model import check_requirements, load_model
from edgeslm.runtime.tokenizer import JsonTokenizer, TextStream
from edgeslm.runtime.weight_cache import WeightCache
from edgeslm.schema.message import Options

COMMAND = "turn the kitchen lights to 40 percent"
INTENT = {"intent": "HassLightSet", "area": "Kitchen", "domain": "light", "brightness": 40}


def with_manifest(package, **changes):
    return replace(package, manifest=package.manifest.model_copy(update=changes))


def with_proof(package, **changes):
    graphs = tuple(
        graph.model_copy(update={"proof": graph.proof.model_copy(update=changes)})
        for graph in package.manifest.graphs
    )
    return with_manifest(package, graphs=graphs)


def test_answers_a_command_with_its_intent(model):
    answer = model.answer(COMMAND, Options())
    assert answer.data == INTENT
    assert json.loads(answer.generation.text) == INTENT
    assert answer.generation.finish_reason == "stop"


def test_uses_the_graph_that_is_meant_for_this_runtime(model):
    kind = choose_runtime().kind
    spec = next(graph for graph in model.installed.manifest.graphs if graph.file == model.graph_file)
    assert kind in spec.runtimes
    assert spec == next(graph for graph in model.installed.manifest.graphs if kind in graph.runtimes)


def test_the_golden_prompts_of_the_package_are_answered_right(model, home_command):
    name = home_command.manifest.golden
    cases = list(parse_golden(home_command.file(name).read_bytes(), home_command.file(name), name))
    assert len(cases) >= 50
    wrong = [case.prompt for case in cases if model.answer(case.prompt, Options()).data != case.json_answer]
    assert wrong == []


def test_case_and_white_space_do_not_matter(model):
    assert model.answer("  Turn the KITCHEN   lights to 40 percent\n", Options()).data == INTENT


@pytest.mark.parametrize("name", ["zorvex lamp", "quillbay fan", "pump 14", "brundle heater c3"])
def test_copies_names_that_it_never_saw(model, name):
    data = model.answer(f"turn on the {name}", Options()).data
    assert data == {"intent": "HassTurnOn", "name": " ".join(word.capitalize() for word in name.split())}


def test_pieces_join_to_the_answer(model):
    pieces = []
    answer = model.answer(COMMAND, Options(), on_text=pieces.append)
    assert "".join(pieces) == answer.generation.text
    assert len(pieces) > 3


def test_stops_between_tokens_when_told(model):
    pieces = []
    answer = model.answer(
        COMMAND,
        Options(),
        on_text=pieces.append,
        should_stop=lambda: "cancelled" if len(pieces) >= 2 else None,
    )
    assert answer.generation.finish_reason == "cancelled"
    assert len(answer.generation.token_ids) <= 3
    assert model.answer(COMMAND, Options()).data == INTENT


def test_ends_at_the_token_limit_and_at_stop_strings(model):
    assert model.answer(COMMAND, Options(max_tokens=2)).generation.finish_reason == "length"
    answer = model.answer(COMMAND, Options(stop=(',"brightness"',))).generation
    assert answer.finish_reason == "stop"
    assert answer.text.endswith('"light"')


def test_sampling_repeats_with_its_seed(model):
    options = Options(temperature=2.0, seed=11, max_tokens=20)
    first, second = (model.answer(COMMAND, options).generation.token_ids for _ in range(2))
    assert first == second
    other = model.answer(COMMAND, Options(temperature=2.0, seed=13, max_tokens=20)).generation.token_ids
    assert other != first


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "a <sep> b", "<s>", "</S>"])
def test_refuses_prompts_without_words_or_with_special_tokens(model, prompt):
    with pytest.raises(BadRequestError):
        model.answer(prompt, Options())
    assert model.answer(COMMAND, Options()).data == INTENT


@pytest.mark.parametrize("prompt", ["very " * 200, "x" * 1_000_000, "🦊" * 500])
def test_refuses_prompts_that_do_not_fit(model, prompt):
    with pytest.raises(TooLargeError) as caught:
        model.answer(prompt, Options())
    assert caught.value.actual > caught.value.limit


@pytest.mark.parametrize("prompt", ["grüße 🦊 an die küche", "\u202eabc", "a\x00b", "ﬁ ½ №", "مرحبا"])
def test_survives_any_text(model, prompt):
    assert model.answer(prompt, Options()).generation.finish_reason in {"stop", "length"}


@pytest.mark.parametrize(
    "text", ["plain words", "grüße 🦊🦊 ½", "a  b\n\tc", '{"intent":"HassTurnOn","area":"Küche"}']
)
def test_a_text_stream_gives_the_text_back_whole(home_command, text):
    tokenizer = JsonTokenizer(home_command.file("tokenizer.json"))
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token) for token in tokenizer.encode(text)) + stream.finish() == text


def test_executors_agree(home_command):
    runtime = choose_runtime()
    if not has_compiled_model(runtime):
        pytest.skip("this runtime has no CompiledModel")
    graph = home_command.manifest.graphs[0]
    path = home_command.file(graph.file)
    engines = [KvEngine(SignatureExecutor(path, runtime, 1)), KvEngine(CompiledExecutor(path, 1, None))]
    answers = []
    for engine in engines:
        engine.prefill(graph.proof.tokens[:-1])
        token, said = graph.proof.tokens[-1], []
        for _ in range(20):
            token = int(engine.step(token).argmax())
            said.append(token)
        answers.append(said)
    assert answers[0] == answers[1]


def test_an_engine_refuses_more_than_its_context(home_command):
    graph = next(g for g in home_command.manifest.graphs if choose_runtime().kind in g.runtimes)
    engine = KvEngine(SignatureExecutor(home_command.file(graph.file), choose_runtime(), 1))
    engine.prefill([5] * engine.context_tokens)
    assert engine.position == engine.context_tokens
    with pytest.raises(InferenceError):
        engine.step(5)
    engine.reset()
    with pytest.raises(InferenceError):
        engine.prefill([5] * (engine.context_tokens + 1))


def test_a_graph_that_computes_other_values_is_refused(home_command):
    proof = home_command.manifest.graphs[0].proof
    with pytest.raises(ProofError, match="golden vector"):
        load_model(with_proof(home_command, greedy=(*proof.greedy[:-1], 7)))
    with pytest.raises(ProofError, match="differ by more than"):
        load_model(with_proof(home_command, logits=tuple(value + 1 for value in proof.logits)))


def test_a_broken_weight_cache_is_thrown_away(home_command, tmp_path):
    runtime = choose_runtime()
    if not has_compiled_model(runtime):
        pytest.skip("this runtime has no CompiledModel")
    load_model(home_command, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    # Packed weights gone bad with a whole header: only the golden vector can tell.
    file.write_bytes(good[:4096] + bytes(len(good) - 8192) + good[-4096:])
    assert load_model(home_command, cache_dir=tmp_path).answer(COMMAND, Options()).data == INTENT
    file.write_bytes(b"rubbish")
    assert load_model(home_command, cache_dir=tmp_path).answer(COMMAND, Options()).data == INTENT
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_cache_folder_that_cannot_be_written_is_done_without(home_command, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert WeightCache(blocked, "0" * 64, choose_runtime()).choose() is None
    assert load_model(home_command, cache_dir=blocked).answer(COMMAND, Options()).data == INTENT


def test_a_package_without_a_graph_for_this_runtime_says_so(home_command):
    other = "tflite-runtime" if choose_runtime().kind == "litert" else "litert"
    graphs = tuple(g.model_copy(update={"runtimes": (other,)}) for g in home_command.manifest.graphs)
    with pytest.raises(RuntimeMissingError, match="has no graph for"):
        load_model(with_manifest(home_command, graphs=graphs))


def test_a_file_that_is_no_graph_is_refused(home_command, tmp_path):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"\0\0\0\0TFL3" + bytes(range(256)) * 8)
    for content in (path.read_bytes(), b"", b"PK\3\4rubbish"):
        path.write_bytes(content)
        with pytest.raises(ModelLoadError):
            SignatureExecutor(path, choose_runtime(), 1)


def test_an_agent_that_is_too_old_or_memory_that_is_too_small_is_named(home_command, tmp_path):
    needs = home_command.manifest.requires
    with pytest.raises(ModelLoadError, match=r"needs edgeslm 99\.0\.0"):
        check_requirements(with_manifest(home_command, requires=needs.model_copy(update={"agent": "99.0.0"})))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 2048 kB\n")
    with pytest.raises(ModelLoadError, match="2 MB are free"):
        check_requirements(home_command, meminfo)


def test_a_runtime_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch):
    assert installed_runtimes()
    monkeypatch.setenv("EDGESLM_RUNTIME", "onnx")
    with pytest.raises(RuntimeMissingError, match="'onnx' is not installed"):
        choose_runtime()


def test_answers_the_same_with_another_number_of_threads(home_command, store_dir):
    model = load_model(home_command, threads=1, cache_dir=store_dir / "cache")
    alone = model.answer(COMMAND, Options()).generation.token_ids
    model.set_threads(2)
    assert model.threads == 2
    assert model.answer(COMMAND, Options()).generation.token_ids == alone


def test_keeps_its_threads_when_the_graph_cannot_be_opened_anew(home_command, tmp_path):
    copy = replace(home_command, directory=tmp_path)
    for member in home_command.directory.iterdir():
        (tmp_path / member.name).write_bytes(member.read_bytes())
    model = load_model(copy, threads=1)
    for graph in tmp_path.glob("*.tflite"):
        graph.unlink()
    with pytest.raises(ModelLoadError):
        model.set_threads(2)
    assert model.threads == 1
    assert model.answer(COMMAND, Options()).data == INTENT
