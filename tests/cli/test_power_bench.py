"""``edgeslm power bench``, with the real model on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeslm.cli.power import power
from edgeslm.schema.bench import BenchResult


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(power, ["bench", *arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchResult, Result]:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = invoke(
        "home-command", "--board", "pi-4b", "--window-s", "0.4", "--repeats", "3", "--out", str(path)
    )
    assert done.exit_code == 0, done.output
    return path, BenchResult.model_validate_json(path.read_bytes()), done


def test_each_window_is_at_least_as_long_as_asked_and_the_median_is_among_them(measured):
    result = measured[1]
    assert len(result.windows) == 3
    assert all(window.seconds >= 0.4 for window in result.windows)
    rates = sorted(window.completion_tokens / window.seconds for window in result.windows)
    figures = result.figures.tokens_per_s
    assert [figures.least, figures.median, figures.most] == pytest.approx(rates)


def test_the_real_model_answers_its_golden_prompts_rightly(measured):
    result = measured[1]
    assert result.golden_asked >= 1
    assert result.golden_right == result.golden_asked
    assert all(window.completion_tokens > window.prompts for window in result.windows)


def test_the_energy_is_that_of_the_whole_board_and_net_is_what_lies_above_idle(measured):
    result = measured[1]
    idle_w = (result.idle_before_w + result.idle_after_w) / 2
    for window in result.windows:
        assert window.energy_j / window.seconds > 2.7 * 0.9
        assert window.net_j == pytest.approx(window.energy_j - idle_w * window.seconds)


def test_what_was_measured_how_and_on_what_is_in_the_file(measured):
    result = measured[1]
    assert result.model.name == "home-command@1.0.0"
    assert len(result.model.sha256) == 64
    assert (result.system.board, result.model.threads) == ("pi-4b", 3)
    assert result.meter.meter_class == "estimated"
    assert result.system.runtime.split()[0] in ("ai-edge-litert", "tflite-runtime")
    assert any("comparable results have 5 of 10 s" in note for note in result.notes)
    assert any("no meter" in note for note in result.notes)


def test_the_text_shows_the_windows_and_their_median(measured):
    text = measured[2].stdout
    assert "tokens a second" in text
    assert "estimated by model" in text
    assert measured[2].stderr.splitlines()[:2] == ["idle, 0.4 s", "warm-up, 0.4 s"]


def test_two_results_are_compared_with_what_else_differs(measured, tmp_path):
    path, result, _ = measured
    other = tmp_path / "other.json"
    other.write_text(changed(result, model={"threads": 1}, tokens_per_s=2.0).model_dump_json())
    text = invoke("--compare", str(path), str(other)).stdout
    assert "model threads" in text
    rate = next(line for line in text.splitlines() if line.startswith("tokens a second"))
    assert "2.000" in rate
    found = json.loads(invoke("--compare", str(path), str(other), "--json").stdout)
    by_name = {figure["figure"]: figure for figure in found["figures"]}
    assert by_name["tokens_per_s"]["ratio"] == pytest.approx(2.0)
    assert (by_name["power_w"]["ratio"], by_name["power_w"]["verdict"]) == (1.0, "same")
    assert found["differences"] == [["model threads", "3", "1"]]


def changed(result: BenchResult, *, model: dict[str, Any], tokens_per_s: float) -> BenchResult:
    rate = result.figures.tokens_per_s
    faster = rate.model_copy(
        update={
            "median": rate.median * tokens_per_s,
            "least": rate.least * tokens_per_s,
            "most": rate.most * tokens_per_s,
        }
    )
    return result.model_copy(
        update={
            "model": result.model.model_copy(update=model),
            "figures": result.figures.model_copy(update={"tokens_per_s": faster}),
        }
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"v":2}'])
def test_a_file_that_is_no_result_is_refused_by_name(measured, tmp_path, content):
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    done = invoke("--compare", str(measured[0]), str(bad))
    assert done.exit_code == 2
    assert f"{bad} is no result of power bench" in done.stderr


def test_a_result_that_cannot_be_read_or_a_model_that_is_not_there_is_named(tmp_path):
    done = invoke("--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.exit_code == 2
    assert f"cannot read {tmp_path / 'a'}" in done.stderr
    assert "no model package 'nothing'" in invoke("nothing").stderr
