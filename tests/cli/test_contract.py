"""The wire as documents: complete, in step with the code, and true of what the models take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edgeslm import codec, topics
from edgeslm.cli.contract import contract, contract_files
from edgeslm.cli.contract_asyncapi import EXAMPLES, document
from edgeslm.cli.contract_channels import MESSAGES, PARAMETERS, channels
from edgeslm.cli.contract_schemas import MESSAGES as MODELS
from edgeslm.cli.contract_schemas import PARTS, described, schema_files, slug, standalone
from edgeslm.schema.base import WireModel
from edgeslm.schema.message import Options, PromptRequest, Result
from edgeslm.schema.metrics import Event, PowerMetrics

PAGES = Path(__file__).parents[2] / "docs" / "contract"
STAND_INS = dict.fromkeys(PARAMETERS, "x-1") | {"claim": "abc123"}


def _validator(model: type[BaseModel]) -> Any:
    return jsonschema_rs.validator_for(standalone(model))


def _address(address: str) -> str:
    return address.format(**STAND_INS)


def test_the_documents_are_what_the_code_says():
    made = contract_files()
    kept = {
        str(path.relative_to(PAGES)): path.read_text("utf-8") for path in PAGES.rglob("*") if path.is_file()
    }
    assert kept == made, "stale: run `make docs-contract`"


def test_every_channel_of_the_topic_tree_is_in_the_contract():
    told = set()
    for channel in channels():
        topic = topics.parse(_address(channel.address))
        told.add(getattr(topic, "channel", type(topic).__name__))
    known = {*get_args(topics.DeviceChannel), *get_args(topics.IdChannel), *get_args(topics.EnrolChannel)}
    assert told == known | {"CommandTopic", "PoolTopic"}


def test_what_a_device_receives_is_what_its_access_list_lets_it_read():
    """The access list and the contract are written by different hands; they have to say the same."""
    access = topics.device_access("x-1", topics.device_user("x-1", "x-1"))
    claim = topics.claim_access(topics.claim_user("x-1", "abc123"))
    for channel in channels():
        topic = _address(channel.address)
        allowed = (
            (*access.reads, *claim.reads) if channel.action == "receive" else (*access.writes, *claim.writes)
        )
        assert any(_matches(one, topic) for one in allowed), f"{channel.name}: {topic}"


def _matches(topic_filter: str, topic: str) -> bool:
    wanted, levels = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(
        want in {"+", level} for want, level in zip(wanted, levels, strict=True)
    )


def test_what_a_broker_keeps_is_said_to_be_retained():
    kept = set(topics.retained_topics("x-1", "x-1"))
    said = {_address(one.address) for one in channels() if one.retain and one.name != "commands"}
    assert said == kept


def test_every_reference_in_the_document_leads_somewhere():
    whole = document()
    for reference in _references(whole):
        at: Any = whole
        for part in reference.removeprefix("#/").split("/"):
            assert part in at, reference
            at = at[part]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_the_document_holds_nothing_that_its_dialect_of_schemas_does_not_know():
    text = yaml.safe_dump(document()["components"]["schemas"])
    assert not [word for word in ("prefixItems", "dependentSchemas", "$defs", "unevaluated") if word in text]


def test_every_message_is_on_a_channel_and_every_model_has_a_file():
    used = {name for channel in channels() for name in channel.messages}
    assert used == {message.name for message in MESSAGES}
    assert {message.model for message in MESSAGES} - {None} == set(MODELS)
    assert set(schema_files()) == {f"{slug(model)}.schema.json" for model in (*MODELS, *PARTS)}


@pytest.mark.parametrize("model", [*MODELS, *PARTS], ids=slug)
def test_every_schema_is_one(model):
    jsonschema_rs.meta.validate(standalone(model))


def test_every_example_is_taken_by_its_model_and_its_schema():
    models = {message.name: message.model for message in MESSAGES}
    for name, examples in EXAMPLES.items():
        model = models[name]
        assert model is not None
        for _, body in examples:
            codec.decode(model, json.dumps(body).encode())
            _validator(model).validate(body)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.floats(-1, 11, allow_nan=False),
    st.text(max_size=4),
    st.lists(st.text(max_size=3), max_size=2),
)


@given(
    body=st.fixed_dictionaries(
        {"id": st.sampled_from(["a", "A-1", "", "a/b", 7]), "prompt": st.sampled_from(["x", "", None, 3])},
        optional={
            **dict.fromkeys((*Options.model_fields, "session", "task", "model", "v", "other"), _VALUES),
            "options": st.dictionaries(
                st.sampled_from([*Options.model_fields, "other"]), _VALUES, max_size=3
            ),
        },
    )
)
def test_a_prompt_that_the_model_takes_the_schema_takes(body):
    try:
        codec.decode(PromptRequest, json.dumps(body).encode())
    except codec.CodecError:
        return
    _validator(PromptRequest).validate(body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a"},
        {"id": "a/b", "prompt": "x"},
        {"id": "a", "prompt": "x", "temperature": 11},
        {"id": "a", "prompt": "x", "options": {"tempreature": 1}},
        {"id": "a", "prompt": "x", "session": ""},
        {"id": "a", "prompt": "x", "inputs": ["y"]},
        {"id": "a", "inputs": []},
        {"id": "a", "prompt": "x", "choices": []},
        {"id": "a", "prompt": "x", "v": 2},
    ],
)
def test_a_prompt_that_the_schema_refuses_the_model_refuses(wrong):
    assert not _validator(PromptRequest).is_valid(wrong)
    with pytest.raises(codec.CodecError):
        codec.decode(PromptRequest, json.dumps(wrong).encode())


@pytest.mark.parametrize("body", [{"id": "a", "device": "d"}, {"id": "a", "device": "d", "error": None}])
def test_a_result_without_answer_and_error_is_refused_by_both(body):
    assert not _validator(Result).is_valid(body)
    with pytest.raises(ValidationError):
        Result.model_validate(body)


def test_fields_carry_the_words_of_the_docstrings_of_all_bases():
    whole, fields = described(PowerMetrics)
    assert whole == "Topic `m/power`."
    assert fields["clock_set"].startswith("whether the device trusts its clock")
    schema = standalone(PowerMetrics)
    assert schema["properties"]["clock_set"]["description"] == fields["clock_set"]
    assert ":class:" not in json.dumps(schema_files())


def test_messages_of_a_newer_release_pass_and_arguments_of_operations_do_not():
    event = {"device": "d", "type": "throttled", "at": "x", "detail": "", "new": 1}
    assert issubclass(Event, WireModel)
    assert _validator(Event).is_valid(event)
    assert not jsonschema_rs.validator_for(schema_files()["bench-args.schema.json"]).is_valid({"new": 1})


def test_schemas_and_document_are_written_where_asked(tmp_path):
    done = CliRunner().invoke(contract, ["schemas", "--out", str(tmp_path / "made"), "--json"])
    assert done.exit_code == 0, done.output
    assert {Path(path).name for path in json.loads(done.output)["written"]} == set(schema_files())
    done = CliRunner().invoke(contract, ["asyncapi"])
    assert yaml.safe_load(done.output) == json.loads(json.dumps(document()))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(contract, ["asyncapi", "--out", str(tmp_path / "file" / "under")])
    assert done.exit_code == 2
    assert "asyncapi.yaml cannot be written" in done.output


def test_the_command_line_starts_without_the_schemas():
    code = "import sys, edgeslm.cli.contract; sys.exit('edgeslm.cli.contract_schemas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
