from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.rules.loading import MAX_FILE_BYTES, compile_rules, load_rules, rule_files
from edgeslm.errors import RuleFileError

INVALID = sorted((Path(__file__).parents[2] / "golden" / "rule" / "invalid").glob("*.yaml"))
GOOD = "inputs: {t: {topic: a}}\nrules:\n  - {name: NAME, when: t > 1, then: [{event: x}]}\n"


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_says_what_is_wrong_with_file_line_and_key(path):
    with pytest.raises(RuleFileError) as caught:
        compile_rules([(path.name, path.read_bytes())])
    assert f"{caught.value}\n" == path.with_suffix(".expected_error").read_text("utf-8")
    assert caught.value.path == path.name
    assert caught.value.exit_code == 2


def test_there_are_golden_files():
    assert len(INVALID) >= 35


def test_reads_files_and_directories_once_each(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD.replace("NAME", "one"))
    (tmp_path / "b.yml").write_text(GOOD.replace("NAME", "two"))
    (tmp_path / "notes.txt").write_text("no rules")
    assert [path.name for path in rule_files([tmp_path, tmp_path / "a.yaml"])] == ["a.yaml", "b.yml"]
    assert set(load_rules([tmp_path]).rules) == {"one", "two"}


def test_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RuleFileError, match="No such file"):
        load_rules([tmp_path / "none.yaml"])


def test_refuses_a_huge_file(tmp_path):
    (tmp_path / "a.yaml").write_text("#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(RuleFileError, match="more than"):
        load_rules([tmp_path])


def test_finds_circles_across_files():
    one = "inputs: {t: {topic: a}}\nrules:\n  - {name: one, when: t > 1, then: [{call: {rule: two}}]}\n"
    two = "rules:\n  - {name: two, on: [], then: [{call: {rule: one}}]}\n"
    with pytest.raises(RuleFileError, match="one -> two -> one"):
        compile_rules([("1.yaml", one.encode()), ("2.yaml", two.encode())])


def test_inputs_of_two_files_are_different_ones():
    other = GOOD.replace("topic: a", "topic: b").replace("NAME", "two")
    rules = compile_rules([("1.yaml", GOOD.replace("NAME", "one").encode()), ("2.yaml", other.encode())])
    assert {spec.spec.topic for spec in rules.inputs.values()} == {"a", "b"}
    assert rules.filters() == [("a", 0), ("b", 0)]


@pytest.mark.parametrize("topic", ["#", "+/#", "edgeslm/#", "edgeslm/v1/home/+/+/+", "edgeslm/+/+/pool/#"])
def test_refuses_inputs_that_would_take_prompts_of_pools(topic):
    text = GOOD.replace("topic: a", f"topic: '{topic}'").replace("NAME", "x")
    with pytest.raises(RuleFileError, match="pools"):
        compile_rules([("x.yaml", text.encode())])


def test_events_and_results_of_devices_may_be_heard():
    text = GOOD.replace("topic: a", "topic: edgeslm/v1/home/+/e/+").replace("NAME", "x")
    assert compile_rules([("x.yaml", text.encode())]).filters() == [("edgeslm/v1/home/+/e/+", 0)]


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    with pytest.raises(RuleFileError, match="alias"):
        compile_rules([("x.yaml", bomb.encode())])


@given(st.binary(max_size=200))
def test_any_bytes_are_rules_or_a_named_error(body):
    with contextlib.suppress(RuleFileError):
        compile_rules([("x.yaml", body)])


PIECES = st.lists(
    st.sampled_from(
        [*GOOD.replace("NAME", "x").split(), "{", "}", "[", "]", ":", "\n", "-", "'{{ t }}'", "&a", "*a"]
    ),
    max_size=30,
).map(" ".join)


@given(PIECES)
def test_any_pieces_are_rules_or_a_named_error(text):
    with contextlib.suppress(RuleFileError):
        compile_rules([("x.yaml", text.encode())])
