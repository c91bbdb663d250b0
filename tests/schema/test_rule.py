"""The page on rules names everything that a file of rules may hold."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from edgeslm.agent.rules.conditions import FUNCTIONS
from edgeslm.agent.rules.loading import compile_rules
from edgeslm.agent.rules.templates import FILTERS
from edgeslm.schema.rule import Input, Publish, Rule
from edgeslm.schema.rule_trace import Outcome

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")


@pytest.mark.parametrize("model", [Input, Rule])
def test_every_key_is_documented(model: type[BaseModel]):
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert {key for key in keys if f"| `{key}` |" not in PAGE} == set()


def test_every_part_of_a_message_is_shown():
    keys = {field.alias or name for name, field in Publish.model_fields.items()}
    assert {key for key in keys if f"      {key}:" not in PAGE} == set()


def test_every_function_filter_and_outcome_is_documented():
    assert {name for name in FUNCTIONS if f"`{name}(" not in PAGE} == set()
    assert {name for name in FILTERS if f"`{name}`" not in PAGE} == set()
    assert {name for name in get_args(Outcome) if f"| `{name}` |" not in PAGE} == set()


def test_the_rule_that_the_page_begins_with_is_one():
    text = PAGE.split("```yaml\n", 1)[1].split("```", 1)[0]
    assert list(compile_rules([("page.yaml", text.encode())]).rules) == ["fan-on"]
