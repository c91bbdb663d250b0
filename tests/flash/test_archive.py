"""The file that puts edgeslm on a board: how it is made."""

from __future__ import annotations

import stat
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.agent_update_rig import make_wheel
from edgeslm.agent import launcher
from edgeslm.errors import FlashError
from edgeslm.flash.archive import Source, describe, write_archive
from edgeslm.flash.onboard import manifest as onboard
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.environment import BoardPython
from edgeslm.flash.payload.whole import BoardSystem, Payload, PayloadRequest, build_payload
from edgeslm.flash.profiles import load_profile
from edgeslm.power.boards import choose_board
from edgeslm.schema.enrol import Claim
from edgeslm.wheelhouse import write_archive as write_wheels

CLAIM = Claim(fleet="green", claim="abcdef", secret="0123456789abcdef", host="broker", port=8884, ca="none")


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> PayloadRequest:
    directory = tmp_path_factory.mktemp("agent")
    files = {"edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8")}
    write_wheels([make_wheel(directory, "1.0.0", files=files)], directory / "agent.tar")
    python = BoardPython("3.13", "/usr/bin/python3.13")
    return PayloadRequest(
        archive=directory / "agent.tar",
        system=BoardSystem(python, "aarch64", "2.41", frozenset({"video", "gpio"})),
        board=choose_board("pi-5"),
        profile=load_profile("default").profile,
        claim=CLAIM,
        models=("release:home-command",),
    )


@pytest.fixture
def payload(request_: PayloadRequest, tmp_path: Path) -> Payload:
    (tmp_path / "payload").mkdir()
    return build_payload(request_, tmp_path / "payload")


def test_the_same_payload_gives_the_same_bytes(request_: PayloadRequest, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        payload = build_payload(request_, tmp_path / name)
        out = tmp_path / f"{name}.pyz"
        made.append(
            (write_archive(describe(request_, payload), payload.entries, out).sha256, out.read_bytes())
        )
    assert made[0] == made[1]


def test_only_its_owner_reads_it_for_it_may_hold_a_claim(
    request_: PayloadRequest, payload: Payload, tmp_path: Path
) -> None:
    out = tmp_path / "board.pyz"
    written = write_archive(describe(request_, payload), payload.entries, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert (written.path, written.size_bytes) == (out, out.stat().st_size)


def test_the_manifest_says_what_the_board_has_to_be(request_: PayloadRequest, payload: Payload) -> None:
    found = describe(request_, payload)
    assert (found.edgeslm, found.machine, found.python) == ("1.0.0", "aarch64", "/usr/bin/python3.13")
    assert (found.board, found.profile, found.fleet, found.device) == ("pi-5", "default", "green", "")
    assert found.groups == ("video",)  # of the two that are there the unit names this one
    assert found.recognised_by == tuple(choose_board("pi-5").recognised_by)
    assert (found.state, found.settings, found.installed) == (layout.STATE, layout.ETC, layout.MANIFEST)


def test_what_makes_the_rest_count_comes_last(request_: PayloadRequest, payload: Payload) -> None:
    found = describe(request_, payload)
    last = [item.path for item in found.items if item.last]
    assert last[0].startswith(f"{layout.VERSIONS}/1.0.0-")
    assert last[0].endswith("/agent.json")
    assert last[1:] == [layout.CURRENT, layout.UNIT, layout.UNIT_LINK, layout.MANIFEST]


def test_every_byte_is_found_by_its_digest(
    request_: PayloadRequest, payload: Payload, tmp_path: Path
) -> None:
    found = describe(request_, payload)
    write_archive(found, payload.entries, tmp_path / "board.pyz")
    source = Source(payload.entries)
    with zipfile.ZipFile(tmp_path / "board.pyz") as archive:
        assert onboard.decode(archive.read(onboard.MANIFEST)) == found
        for item in found.items:
            if item.kind == "file":
                with source.open_bytes(item) as stream:
                    assert stream.read() == archive.read(f"{onboard.FILES}/{item.sha256}")
        assert len(archive.namelist()) == len(set(archive.namelist()))


def test_the_program_in_it_imports_nothing_but_the_standard_library_and_itself(
    request_: PayloadRequest, payload: Payload, tmp_path: Path
) -> None:
    import ast  # noqa: PLC0415

    write_archive(describe(request_, payload), payload.entries, tmp_path / "board.pyz")
    with zipfile.ZipFile(tmp_path / "board.pyz") as archive:
        programs = [name for name in archive.namelist() if name.endswith(".py")]
        assert len(programs) > 5
        for name in programs:
            for node in ast.walk(ast.parse(archive.read(name))):
                if isinstance(node, ast.Import):
                    assert all(one.name.split(".")[0] in sys.stdlib_module_names for one in node.names), name
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    top = str(node.module).split(".")[0]
                    assert top in sys.stdlib_module_names or top == "edgeslm_onboard", (name, node.module)


def test_one_that_cannot_be_written_is_not_there_in_part(
    request_: PayloadRequest, payload: Payload, tmp_path: Path
) -> None:
    found = describe(request_, payload)
    out = tmp_path / "out" / "board.pyz"
    with pytest.raises(FlashError, match="--out"):
        write_archive(found, payload.entries, out)
    out.parent.mkdir()
    out.write_bytes(b"before")
    broken = [
        replace(entry, content=tmp_path / "gone") if entry.path == layout.LAUNCHER else entry
        for entry in payload.entries
    ]
    with pytest.raises(FlashError, match="gone"):
        write_archive(found, broken, out)
    assert [path.name for path in out.parent.iterdir()] == ["board.pyz"]
    assert out.read_bytes() == b"before"
