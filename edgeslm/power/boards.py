"""Board files: the ones that ship with edgeslm and those of a folder of the user's own."""

from __future__ import annotations

import platform
from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import ConfigError
from edgeslm.schema.board import Board

_DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
_FALLBACK = {"aarch64": "generic-arm64"}


def _parse(text: str, path: str) -> Board:
    try:
        return Board.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {str(error)[:200]}", path=path) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}", path=path) from error


def load_boards(devices_dir: Path | None = None) -> dict[str, Board]:
    """All known boards by name; a file in `devices_dir` takes precedence over one that ships.

    Raises:
        ConfigError: a file is no board, or is not called after the board in it.
    """
    boards: dict[str, Board] = {}
    sources = [
        (entry.name, entry.read_text("utf-8"))
        for entry in sorted(resources.files("edgeslm._devices").iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    ]
    if devices_dir is not None:
        sources += [(str(path), path.read_text("utf-8")) for path in sorted(devices_dir.glob("*.yaml"))]
    for path, text in sources:
        board = _parse(text, path)
        if Path(path).stem != board.name:
            raise ConfigError(
                f"{path} describes board '{board.name}'", path=path, hint=f"Call it {board.name}.yaml"
            )
        boards[board.name] = board
    return boards


def detect_board(boards: dict[str, Board], model_file: Path = _DEVICE_TREE_MODEL) -> Board:
    """The board we run on, by the device tree's model; else the generic one of this architecture."""
    try:
        model = model_file.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        model = ""
    matches = [
        (len(text), board) for board in boards.values() for text in board.recognised_by if text in model
    ]
    if matches:
        # The longest text is the most specific: "Raspberry Pi 3 Model B Plus" before "Raspberry Pi 3 Model B".
        return max(matches, key=lambda match: match[0])[1]
    return boards[_FALLBACK.get(platform.machine(), "host")]


def choose_board(name: str | None, devices_dir: Path | None = None) -> Board:
    """The board called `name`, or the one we run on.

    Raises:
        ConfigError: no such board.
    """
    boards = load_boards(devices_dir)
    if name is None:
        return detect_board(boards)
    if name not in boards:
        raise ConfigError(f"unknown board '{name}'", key="board", hint=f"Known: {', '.join(sorted(boards))}")
    return boards[name]
