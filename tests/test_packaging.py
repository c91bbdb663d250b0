"""What is installed is what is in the tree."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_tree_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = settings["options"]["packages"].split()
    moved = dict(line.split(" = ") for line in settings["options"]["package_dir"].strip().splitlines())
    there = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "edgeslm").rglob("__init__.py")
    } | {name for name, folder in moved.items() if (ROOT / folder / "__init__.py").exists()}
    assert listed == sorted(set(listed), key=listed.index), "listed twice"
    assert set(listed) == there
