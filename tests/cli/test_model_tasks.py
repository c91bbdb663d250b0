"""A bare graph from the command line: packed, shown, proved and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgeslm.cli import wiring
from edgeslm.cli.main import cli

from ..runtime.graphs import Graph, Op, Tensor, add_floats, dense_int8, fb

WEIGHTS = np.array([[4, 0, -4], [1, 2, 3]])
"""In real numbers a quarter of it."""


def run(*arguments: object, code: int = 0, stdin: str = "") -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wiring, "default_store_dir", lambda: tmp_path / "store")
    return dense_int8(WEIGHTS, tmp_path / "Sensor_Trend.tflite")


def test_a_graph_becomes_a_package_that_proves_itself_and_runs(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "trend.slm"
    run("model", "pack", graph, "--license", "Apache-2.0", "-o", out)
    found = json.loads(run("model", "info", out, "--json"))
    assert (found["name"], found["version"], found["task"]) == ("sensor-trend", "1.0.0", "tensor")
    assert "x (1 x 3, float32)" in found["description"]
    assert "computes its golden vector" in run("model", "verify", out)
    assert json.loads(run("model", "run", out, "--tensor", "-", stdin='{"x": [[1, 2, 3]]}')) == {
        "y": [[-2, 4]]
    }
    whole = json.loads(run("model", "run", out, "--json", "--tensor", "-", stdin='{"x": [[1, 2, 3]]}'))
    assert whole["tensor"] == {"y": [[-2, 4]]}


def test_with_labels_it_classifies(graph: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("falls\nrises\n")
    out = tmp_path / "trend.slm"
    run("model", "pack", graph, "--license", "MIT", "--labels", labels, "--name", "trend", "-o", out)
    assert "one of 2 labels: falls, rises" in run("model", "info", out)
    arrays = tmp_path / "in.json"
    arrays.write_text('{"x": [[1, 2, 3]]}')
    assert (
        run("model", "run", out, "--tensor", arrays, "--task", "classify").splitlines()[0].endswith("  rises")
    )
    labels.write_text("falls\n")
    told = run("model", "pack", graph, "--license", "MIT", "--labels", labels, "-o", out, code=4)
    assert "2 scores, and there are 1 labels" in told


def test_the_model_that_ships_chooses_between_what_it_is_given(graph: Path) -> None:
    found = run(
        "model", "run", "home-command", "turn on the kitchen light", "--task", "classify",
        "--choices", "nothing,the weather", "--json",
    )  # fmt: skip
    assert set(json.loads(found)["scores"]) == {"nothing", "the weather"}


@pytest.mark.parametrize(
    ("stdin", "code", "told"),
    [
        ("[1]", 2, "no object of arrays"),
        ("{", 2, "no JSON"),
        ("{}", 2, "at least 1 item"),
        ('{"x": [[1, 2]]}', 1, "1x2"),
    ],
)
def test_arrays_that_are_of_no_use_are_told(
    graph: Path, tmp_path: Path, stdin: str, code: int, told: str
) -> None:
    run("model", "pack", graph, "--license", "MIT", "-o", tmp_path / "t.slm")
    assert told in run("model", "run", tmp_path / "t.slm", "--tensor", "-", stdin=stdin, code=code)


def test_what_contradicts_is_told(graph: Path, tmp_path: Path) -> None:
    assert "licence" in run("model", "pack", graph, code=2)
    assert "go with a .tflite" in run("model", "pack", tmp_path, "--license", "MIT", code=2)
    run("model", "pack", graph, "--license", "MIT", "-o", tmp_path / "t.slm")
    assert "takes the place" in run("model", "run", tmp_path / "t.slm", "hi", "--tensor", "-", code=2)
    assert "needs arrays" in run("model", "run", tmp_path / "t.slm", "hi", code=2)


def test_what_is_no_graph_or_computes_nothing_is_not_packed(graph: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.tflite"
    rubbish.write_bytes(b"TFL3" * 10)
    assert "rubbish.tflite" in run("model", "pack", rubbish, "--license", "MIT", code=4)
    nothing = Graph(
        [Tensor("x", (1, 3)), Tensor("nil", (1, 3), data=np.zeros((1, 3))), Tensor("y", (1, 3))],
        [Op(fb.BuiltinOperator.MUL, (0, 1), (2,), fb.BuiltinOptions.MulOptions, fb.MulOptionsT())],
        (0,),
        (2,),
    ).write(tmp_path / "nothing.tflite")
    assert "nothing but zeros" in run("model", "pack", nothing, "--license", "MIT", code=4)
    assert not list(tmp_path.glob("*.slm"))


def test_long_golden_vectors_are_kept_as_bytes(graph: Path, tmp_path: Path) -> None:
    long = add_floats(tmp_path / "long.tflite", (1, 6000))
    out = tmp_path / "long.slm"
    run("model", "pack", long, "--license", "MIT", "-o", out)
    assert "computes its golden vector" in run("model", "verify", out)
    assert out.stat().st_size < 100_000
    huge = add_floats(tmp_path / "huge.tflite", (1, 200_000))
    assert "too many for a golden vector" in run("model", "pack", huge, "--license", "MIT", code=4)
