"""``edgeslm flash base-image``: what it refuses, and what it says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeslm.cli.main import cli


def run(*arguments: object) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    return CliRunner(env=clean).invoke(cli, ["flash", "base-image", *map(str, arguments)])


def test_an_image_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "base.img"
    out.write_bytes(b"mine")
    done = run("--board", "qemu-virt", "--out", out)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("board", "says"),
    [("pi-5", "Raspberry Pi OS"), ("rock-5b", "image of the maker"), ("no-such-board", "no-such-board")],
)
def test_a_board_without_a_base_image_is_told_what_to_take(tmp_path: Path, board: str, says: str) -> None:
    done = run("--board", board, "--out", tmp_path / "base.img")
    assert done.exit_code in {1, 2}
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--offline", "--no-cache"], "exclude each other"),
        (["--offline", "--cache-dir", "CACHE"], "no such image lies in"),
        (["--mirror", "ftp://nowhere"], "no address of a mirror"),
        (
            ["--mirror", "http://127.0.0.1:9/debian", "--keyring", "none.gpg", "--no-cache"],
            "keys of the archive are missing",
        ),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_left(tmp_path: Path, options: list[str], says: str) -> None:
    given = [str(tmp_path / "cache") if word == "CACHE" else word for word in options]
    out = tmp_path / "base.img"
    if "--cache-dir" not in given and "--no-cache" not in given:
        given += ["--cache-dir", str(tmp_path / "cache")]
    done = run("--board", "qemu-virt", "--out", out, *given)
    assert done.exit_code in {1, 2}, done.output
    assert says in done.stderr
    assert not out.exists()


def test_a_mirror_that_cannot_be_reached_is_an_error_with_a_hint(tmp_path: Path) -> None:
    if (
        not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists()
        or not Path("/usr/bin/apt-get").exists()
    ):
        pytest.skip("apt or Debian's keys are not installed")
    done = run(
        "--board",
        "qemu-virt",
        "--out",
        tmp_path / "x.img",
        "--mirror",
        "http://127.0.0.1:9/debian",
        "--no-cache",
    )
    assert done.exit_code == 1
    assert "packages cannot be fetched" in done.stderr
    assert "another mirror" in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_the_cache_can_be_named_by_the_environment(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = CliRunner(env={"EDGESLM_BASE_CACHE": str(cache)}).invoke(
        cli,
        [
            "flash",
            "base-image",
            "--board",
            "qemu-virt",
            "--out",
            str(tmp_path / "x.img"),
            "--offline",
            "--json",
        ],
    )
    assert done.exit_code == 1
    assert str(cache) in done.stderr
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)
