"""Board files: the ones that ship with edgeslm and those of a folder of the user's own."""

from __future__ import annotations

import platform
from importlib import resources
from pathlib import Path
from typing import Final

from edgeslm.errors import ConfigError
from edgeslm.files import read_bounded
from edgeslm.power.detection import Machine, detect, read_texts
from edgeslm.schema.board import Board
from edgeslm.yaml_lines import nearest_of, read_yaml

_DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
_MAX_FILE_BYTES: Final = 65_536
_MAX_FILES: Final = 256


def parse_board(name: str, body: bytes) -> Board:
    """The board in the file of that name and body.

    Raises:
        YamlFileError: it is no board, or not called after the board in it.
    """
    source = read_yaml(name, body)
    board = source.validate(Board)
    if Path(name).stem != board.name:
        raise source.error(
            ("name",), f"this is board '{board.name}'", hint=f"Call the file {board.name}.yaml"
        )
    return board


def load_boards(devices_dir: Path | None = None) -> dict[str, Board]:
    """All known boards by name; a file in `devices_dir` takes precedence over one that ships.

    Raises:
        ConfigError: a file cannot be read, is no board, or is not called after the board in it.
    """
    boards = [
        parse_board(entry.name, entry.read_bytes())
        for entry in sorted(resources.files("edgeslm._devices").iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    ]
    if devices_dir is not None:
        boards += [parse_board(str(path), _read(path)) for path in _files(devices_dir)]
    return {board.name: board for board in boards}


def detect_board(boards: dict[str, Board], model_file: Path = _DEVICE_TREE_MODEL) -> Board:
    """The board we run on, by the device tree whose ``model`` is `model_file`; else the generic one."""
    model = read_texts(model_file)
    machine = Machine(
        arch=platform.machine(),
        model=model[0] if model else None,
        compatible=read_texts(model_file.with_name("compatible")),
    )
    return detect(boards, machine).board


def choose_board(name: str | None, devices_dir: Path | None = None) -> Board:
    """The board called `name`, or the one we run on.

    Raises:
        ConfigError: no such board.
    """
    boards = load_boards(devices_dir)
    return detect_board(boards) if name is None else find_board(boards, name)


def find_board(boards: dict[str, Board], name: str) -> Board:
    """The one of `boards` that is called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in boards:
        nearest = nearest_of(name, sorted(boards))
        meant = f"Did you mean '{nearest}'? " if nearest else ""
        raise ConfigError(
            f"unknown board '{name}'", key="board", hint=f"{meant}Known: {', '.join(sorted(boards))}"
        )
    return boards[name]


def _files(directory: Path) -> list[Path]:
    try:
        found = sorted(entry for entry in directory.iterdir() if entry.suffix == ".yaml")
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}", path=str(directory)) from error
    if len(found) > _MAX_FILES:
        raise ConfigError(
            f"{directory} has {len(found)} files; at most {_MAX_FILES} boards are read", path=str(directory)
        )
    return found


def _read(path: Path) -> bytes:
    try:
        body = read_bounded(path.resolve(), _MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", path=str(path)) from error
    if len(body) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {_MAX_FILE_BYTES} bytes", path=str(path))
    return body
