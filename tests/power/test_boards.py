from __future__ import annotations

import platform
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeslm.errors import ConfigError, YamlFileError
from edgeslm.power.boards import choose_board, detect_board, load_boards
from edgeslm.schema.board import Board

SHIPPED = sorted(
    (entry.name, entry.read_text("utf-8"))
    for entry in resources.files("edgeslm._devices").iterdir()
    if entry.name.endswith(".yaml")
)


@pytest.mark.parametrize(("file_name", "text"), SHIPPED, ids=[name for name, _ in SHIPPED])
def test_every_board_file_parses_and_is_named_after_its_board(file_name: str, text: str) -> None:
    board = Board.model_validate(yaml.safe_load(text))
    assert file_name == f"{board.name}.yaml"
    assert load_boards()[board.name] == board
    assert board.cores is None or board.threads <= board.cores


def test_no_two_boards_are_recognised_by_the_same_text() -> None:
    texts = [text for board in load_boards().values() for text in board.recognised_by]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (b"Raspberry Pi 3 Model B Plus Rev 1.3\0", "pi-3b-plus"),
        (b"Raspberry Pi 3 Model B Rev 1.2\0", "pi-3b"),
        (b"Raspberry Pi 4 Model B Rev 1.4\0", "pi-4b"),
        (b"Raspberry Pi 4 Model B Rev 1.4", "pi-4b"),
    ],
)
def test_the_most_specific_board_of_the_device_tree_is_detected(
    tmp_path: Path, model: bytes, name: str
) -> None:
    file = tmp_path / "model"
    file.write_bytes(model)
    boards = load_boards()
    assert detect_board(boards, file).name == name
    assert detect_board(dict(reversed(boards.items())), file).name == name


@pytest.mark.parametrize(
    ("machine", "name"), [("aarch64", "generic-arm64"), ("x86_64", "host"), ("riscv64", "host")]
)
@pytest.mark.parametrize("model", [None, b"Some Other Board\0", b"\xff\xfe\0", b""])
def test_an_unknown_board_is_the_generic_one_of_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, name: str, model: bytes | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    file = tmp_path / "model"
    if model is not None:
        file.write_bytes(model)
    assert detect_board(load_boards(), file).name == name


def _board(**changes: Any) -> dict[str, Any]:
    board: dict[str, Any] = yaml.safe_load(dict(SHIPPED)["pi-4b.yaml"])
    return {**board, **changes}


def _write(directory: Path, file_name: str, board: dict[str, Any]) -> Path:
    path = directory / file_name
    path.write_text(yaml.safe_dump(board))
    return path


def test_a_folder_of_the_users_own_overrides_and_adds(tmp_path: Path) -> None:
    _write(tmp_path, "pi-4b.yaml", _board(threads=2))
    _write(
        tmp_path, "my-board.yaml", _board(name="my-board", recognised_by=["Raspberry Pi 4 Model B Rev 1.4"])
    )
    boards = load_boards(tmp_path)
    assert boards["pi-4b"].threads == 2
    assert set(boards) == set(load_boards()) | {"my-board"}
    assert choose_board("pi-4b", tmp_path).threads == 2
    model = tmp_path / "model"
    model.write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert detect_board(boards, model).name == "my-board"


def test_what_is_no_yaml_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    _refused(tmp_path, path)


@pytest.mark.parametrize("text", ["", "- a list\n", "name: broken\n"])
def test_yaml_that_is_no_board_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    _refused(tmp_path, path)


def test_an_unknown_key_is_an_error_that_names_the_file_and_the_key(tmp_path: Path) -> None:
    path = _write(tmp_path, "pi-4b.yaml", _board(colour="green"))
    assert "colour" in str(_refused(tmp_path, path))


def test_a_fault_is_told_with_line_key_what_is_expected_and_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "pi-4b.yaml"
    text = dict(SHIPPED)["pi-4b.yaml"].replace("  idle_w:", "  idel_w:")
    path.write_text(text)
    error = _refused(tmp_path, path)
    assert isinstance(error, YamlFileError)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "idel_w" in row)
    assert (error.line, error.key, error.nearest) == (line, "power.idel_w", "idle_w")
    assert f"line {line}, power.idel_w: unknown key; expected: core_load_w, " in str(error)
    assert "Did you mean 'idle_w'?" in str(error)


def test_files_that_cannot_be_read_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: No such file"):
        load_boards(tmp_path / "absent")
    path = tmp_path / "big.yaml"
    path.write_text("#" * 70_000)
    assert "more than 65536 bytes" in str(_refused(tmp_path, path))
    path.unlink()
    path.mkdir()
    _refused(tmp_path, path)
    path.rmdir()
    for number in range(257):
        (tmp_path / f"{number}.yaml").touch()
    with pytest.raises(ConfigError, match="at most 256"):
        load_boards(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"threads": 0}, {"power": {"idle_w": -1, "core_load_w": 1, "source": "guesswork"}}, {"sources": []}],
)
def test_a_value_out_of_bounds_is_an_error_that_names_the_file(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = _write(tmp_path, "pi-4b.yaml", _board(**changes))
    assert next(iter(changes)) in str(_refused(tmp_path, path))


def test_a_file_not_named_after_its_board_is_an_error_that_says_how_to_call_it(tmp_path: Path) -> None:
    path = _write(tmp_path, "raspi.yaml", _board())
    assert "pi-4b.yaml" in str(_refused(tmp_path, path))


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_board("pi-9")
    assert caught.value.key == "board"
    assert "pi-9" in str(caught.value)
    assert "Did you mean 'pi-" in str(caught.value)
    assert "pi-4b" in str(caught.value)


def _refused(directory: Path, path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_boards(directory)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    return caught.value
