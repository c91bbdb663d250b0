"""Packages with a chat template: packed, loaded, and asked, with the model that ships."""

import json
import time
import zipfile
from importlib import resources

import pytest

from edgeslm.cli import wiring
from edgeslm.errors import (
    BadRequestError,
    ChatTemplateError,
    ContextOverflowError,
    PackageFormatError,
    TooLargeError,
)
from edgeslm.models.packing import pack_directory
from edgeslm.runtime.chat_renderer import examine
from edgeslm.runtime.chat_template import ChatMessage
from edgeslm.runtime.conversation import Turn, check_messages, spoken
from edgeslm.runtime.model import load_model
from edgeslm.schema.message import Options, PromptRequest

SHAPE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ m.content }}{{ '<sep>' if m.role == 'user' else eos_token }}{% endfor %}"
)
COMMAND = "turn the kitchen lights to 40 percent"


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "home"
    with zipfile.ZipFile(str(resources.files("edgeslm._packages") / "home-command.slm")) as archive:
        archive.extractall(directory)
    draft = json.loads((directory / "manifest.json").read_text())
    del draft["files"]
    draft["prompt"] = {"lower": True, "collapse_whitespace": True}
    draft["chat_template"] = {"file": "chat_template.jinja", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "manifest.json").write_text(json.dumps(draft))
    (directory / "chat_template.jinja").write_text(SHAPE)
    return directory


def change(source, **fields):
    draft = json.loads((source / "manifest.json").read_text())
    (source / "manifest.json").write_text(json.dumps(draft | fields))
    return source


def chat(**fields):
    return {"file": "chat_template.jinja", "bos_token": "<s>", "eos_token": "</s>"} | fields


def packed(source):
    made = source.parent / "home.slm"
    pack_directory(source, made, None, examine)
    return made


def opened(source):
    return load_model(wiring.install_package(str(packed(source)), source.parent / "store"))


def test_a_model_answers_in_the_form_of_its_chat_template(source, model):
    found = opened(source)
    assert found.encode(COMMAND) == model.encode(COMMAND)
    assert found.count_tokens(COMMAND) == model.count_tokens(COMMAND)
    answer = found.answer(COMMAND, Options())
    assert answer.generation.token_ids == model.answer(COMMAND, Options()).generation.token_ids
    assert answer.data["area"] == "Kitchen"


@pytest.mark.parametrize("said", ["</s>", "fan <sep> off", "<s><s>", "a</s><s>b<sep>"])
def test_a_prompt_cannot_say_a_special_token(source, said):
    found = opened(source)
    ids = found.encode(f"turn on {said} now")
    special = found.tokenizer.special_ids()
    plain = found.encode("turn on x now")
    assert [token for token in ids if token in special] == [token for token in plain if token in special]
    assert found.answer(f"turn on {said} now", Options()).generation.finish_reason in {"stop", "length"}


def test_earlier_turns_are_rendered_with_the_new_prompt(source):
    found = opened(source)
    first = found.answer(COMMAND, Options(session="a"))
    second = found.answer("turn it off", Options(session="a"), turns=(first.turn,))
    text = f"<s>{COMMAND}<sep>{first.generation.text}</s>turn it off<sep>"
    assert second.generation.prompt_tokens == len(found.tokenizer.encode(text))
    assert second.generation.cached_tokens >= first.generation.prompt_tokens


def test_the_system_message_of_a_package_comes_first(source):
    change(source, chat_template=chat(system="turn the"))
    (source / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content + (' ' if m.role == 'system' else '<sep>') }}{% endfor %}"
    )
    found = opened(source)
    assert found.answer(COMMAND.removeprefix("turn the "), Options()).data["brightness"] == 40


def test_a_conversation_that_the_template_refuses_is_a_bad_request(source):
    (source / "chat_template.jinja").write_text(
        SHAPE + "{% if 'secret' in messages[-1].content %}{{ raise_exception('not that') }}{% endif %}"
    )
    found = opened(source)
    with pytest.raises(BadRequestError, match="not that"):
        found.answer("my secret", Options())
    assert found.answer(COMMAND, Options()).data["area"] == "Kitchen"


@pytest.mark.parametrize(
    ("text", "fields", "told"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", {}, "50000 steps"),
        ("{{ messages | nosuch }}", {}, "No filter named 'nosuch'"),
        ("hello", {}, "what the user said is not in the text"),
        (SHAPE, {"bos_token": "<bos>"}, "bos_token '<bos>' is no special token of the tokenizer"),
        (SHAPE, {"eos_token": "on"}, "eos_token 'on' is no special token of the tokenizer"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", {"system": "Be brief."},
         "no place for the system message"),
    ],
)  # fmt: skip
def test_a_package_whose_template_is_of_no_use_is_not_packed(source, text, fields, told):
    (source / "chat_template.jinja").write_text(text)
    change(source, chat_template=chat(**fields))
    with pytest.raises(ChatTemplateError, match=told):
        packed(source)
    assert not list(source.parent.glob("*.slm"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": {"prefix": "<s>"}}, "chat_template and prompt contradict each other"),
        ({"chat_template": {"file": "other.jinja"}}, "files named but not listed: other.jinja"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_not_packed(source, fields, told):
    with pytest.raises(PackageFormatError, match=told):
        packed(change(source, **fields))


def test_a_template_that_was_not_checked_when_it_was_packed_is_refused_when_it_is_loaded(source):
    (source / "chat_template.jinja").write_text(
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    )
    made = source.parent / "home.slm"
    pack_directory(source, made)
    installed = wiring.install_package(str(made), source.parent / "store")
    with pytest.raises(ChatTemplateError, match="50000 steps"):
        load_model(installed)


TALK = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}"
    "{{ {'system': ' ', 'user': '<sep>', 'assistant': eos_token}[m.role] }}{% endfor %}"
)
SYSTEM = "you are the voice of a home and turn on what you are asked for " * 2


def spoken_by(*messages):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    said = [{"role": roles[role], "content": text} for role, text in messages]
    return spoken(PromptRequest(id="a", messages=said))


def ask(model, *messages, **options):
    said = spoken_by(*messages)
    return model.answer(said.prompt, Options(**options), turns=said.turns, system=said.system)


def test_messages_are_put_together_by_the_template_of_the_package(source):
    change(source, chat_template=chat(system="be kind"))
    (source / "chat_template.jinja").write_text(TALK)
    found = opened(source)
    said = (("s", "be brief"), ("u", "Turn On"), ("a", "Ok"), ("u", "off"))
    ids = found.tokenizer.encode(
        "<s>be brief turn on<sep>Ok</s>off<sep>"
    )  # only the user's words are made small
    assert ask(found, *said).generation.prompt_tokens == len(ids)
    assert found.count_tokens("off", turns=spoken_by(*said).turns, system="be brief") == len(ids)
    # Without one of theirs the package's own message of the system stays.
    assert ask(found, *said[1:]).generation.prompt_tokens == len(
        found.tokenizer.encode("<s>be kind turn on<sep>Ok</s>off<sep>")
    )


def test_a_message_of_the_system_is_computed_once(source):
    (source / "chat_template.jinja").write_text(TALK)
    found = opened(source)
    begins = len(found.tokenizer.encode(f"<s>{SYSTEM} "))
    first = ask(found, ("s", SYSTEM), ("u", "turn on the fan"))
    assert first.generation.cached_tokens == 0
    found.engine.reset()
    second = ask(found, ("s", SYSTEM), ("u", "stop"), ("a", "ok"), ("u", "is the door open"))
    assert begins - 2 <= second.generation.cached_tokens <= begins
    found.engine.reset()
    again = opened(source)
    assert ask(
        again, ("s", SYSTEM), ("u", "stop"), ("a", "ok"), ("u", "is the door open")
    ).generation.token_ids == (second.generation.token_ids)


def test_of_messages_that_are_too_long_the_oldest_go_and_the_system_stays(source):
    (source / "chat_template.jinja").write_text(TALK)
    found = opened(source)
    before = [("u", "turn on the lights"), ("a", "the lights are on")] * 12
    with pytest.raises(ContextOverflowError, match="and 12 earlier turns of"):
        ask(found, ("s", "be brief"), *before, ("u", COMMAND))
    answer = ask(found, ("s", "be brief"), *before, ("u", COMMAND), overflow="slide")
    assert 0 < answer.dropped_turns < 12
    left = before[2 * answer.dropped_turns :]
    said = "".join(f"{text}<sep>" if role == "u" else f"{text}</s>" for role, text in left)
    ids = found.tokenizer.encode(f"<s>be brief {said}{COMMAND}<sep>")
    assert answer.generation.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ((("s", "x " * 15_000), ("u", "on")), TooLargeError, "message of the system of at least"),
        ((("u", "x " * 15_000),), TooLargeError, "prompt of"),
        ((("u", "x " * 15_000), ("a", "y"), ("u", "on")), TooLargeError, "earlier turns of at least"),
        ((("u", "on"), ("a", "z " * 15_000), ("u", "on")), TooLargeError, "earlier turns of at least"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused_at_once(source, said, error, told):
    (source / "chat_template.jinja").write_text(TALK)
    found = opened(source)
    started = time.perf_counter()
    with pytest.raises(error, match=told):
        ask(found, *said)
    assert time.perf_counter() - started < 0.1
    assert found.answer(COMMAND, Options()).data["area"] == "Kitchen"


def test_a_template_without_a_place_for_a_system_message_refuses_one(source):
    (source / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{{ m.content }}<sep>{% endfor %}"
    )
    found = opened(source)
    with pytest.raises(BadRequestError, match="no place for a message of the system"):
        ask(found, ("s", "be brief"), ("u", "on"))
    assert ask(found, ("u", "on"), ("a", "ok"), ("u", "off")).generation.text


def test_a_model_without_a_chat_template_has_no_form_for_messages(model):
    request = PromptRequest(id="a", messages=[{"role": "user", "content": "on"}])
    with pytest.raises(BadRequestError, match=r"home-command@\S+ has no form for messages"):
        check_messages(request, model.installed.manifest)
    for turns, system in (((Turn("a", "b"),), None), ((), "be brief")):
        with pytest.raises(BadRequestError, match="has no form for messages"):
            model.answer("on", Options(), turns=turns, system=system)


def test_messages_of_all_roles_are_tokenized(source):
    found = opened(source)
    ids = found._encoder.tokenize_messages(
        [ChatMessage("user", "on"), ChatMessage("assistant", "ok"), ChatMessage("user", "off")]
    )
    assert ids == found.tokenizer.encode("<s>on<sep>ok</s>off<sep>")
