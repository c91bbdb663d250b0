"""docs/updates.md names everything that a device may say, and every setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from edgeslm.agent.update.machine import RELEASES_OWN
from edgeslm.errors import UpdateCause
from edgeslm.schema.update import Criterion, Deadlines, GatePolicy, Reported, UpdatePolicy, UpdateState

PAGE = (Path(__file__).parents[3] / "docs" / "updates.md").read_text("utf-8")
CAUSES: tuple[str, ...] = get_args(UpdateCause)


@pytest.mark.parametrize("word", [*get_args(UpdateState), *get_args(Criterion)])
def test_every_state_and_criterion_has_a_row(word: str) -> None:
    assert re.search(rf"^\| `{word}` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_a_row_that_says_rightly_whether_it_is_denied(cause: str) -> None:
    row = re.search(rf"^\| `{cause}` \|.*$", PAGE, re.MULTILINE)
    assert row is not None
    assert row[0].endswith("| denied |") == (cause in RELEASES_OWN)


def test_every_setting_is_named_with_its_default() -> None:
    section = PAGE.split("## Settings")[1]
    for name, field in GatePolicy.model_fields.items():
        assert f"gate.{name}`" in section
        if isinstance(field.default, float | int):
            assert f"{field.default:g}" in section
    for name in Deadlines.model_fields:
        assert f"{name}`" in section
    for name, field in UpdatePolicy.model_fields.items():
        if name not in {"gate", "deadlines"}:
            assert f"`{name}`" in section
            assert f"{field.default:g}" in section


def test_the_report_shown_is_one() -> None:
    shown = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    report = Reported.model_validate_json(shown[1].replace("8f79...", "8" * 64).replace("fb55...", "f" * 64))
    assert report.models[0].change is not None
    assert report.models[0].change.verdict is not None
