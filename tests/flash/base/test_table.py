"""Tables of partitions are what other programs, and our own reader, expect."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Literal

import pytest

from edgeslm.errors import PartitionError, ToolMissingError
from edgeslm.flash.base.table import Span, table_bytes
from edgeslm.flash.image.image import Image
from edgeslm.flash.image.partitions import read_table
from edgeslm.flash.image.tools import find_tool
from edgeslm.flash.image.window import Window

MIB = 2**20
IDENTITY = uuid.UUID("7a0c1f7e-0f53-4c07-92ff-5f0d2a0c0b11")
BOOT, ROOT, DISK = Span(4 * MIB, 96 * MIB), Span(100 * MIB, 200 * MIB), 304 * MIB


def disk(directory: Path, kind: Literal["mbr", "gpt"]) -> Path:
    path = directory / "disk.img"
    with path.open("wb") as stream:
        stream.truncate(DISK)
        for at, data in table_bytes(kind, DISK, BOOT, ROOT, IDENTITY).items():
            stream.seek(at)
            stream.write(data)
    return path


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_our_reader_finds_both_partitions(tmp_path: Path, kind: Literal["mbr", "gpt"]) -> None:
    path = disk(tmp_path, kind)
    with path.open("rb") as stream:
        table = read_table(Window(path, stream.fileno(), 0, DISK))
    assert [(one.start_bytes, one.size_bytes) for one in table.partitions] == [
        (BOOT.start, BOOT.size),
        (ROOT.start, ROOT.size),
    ]


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_sfdisk_finds_no_fault(tmp_path: Path, kind: Literal["mbr", "gpt"]) -> None:
    try:
        sfdisk = find_tool("sfdisk")
    except ToolMissingError:
        pytest.skip("sfdisk is not installed")
    path = disk(tmp_path, kind)
    verified = subprocess.run([sfdisk, "--verify", str(path)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "error" not in (verified.stdout + verified.stderr).lower().replace("no errors", "")
    told = json.loads(subprocess.check_output([sfdisk, "--json", str(path)]))["partitiontable"]
    assert told["label"] == {"mbr": "dos", "gpt": "gpt"}[kind]
    assert [(one["start"], one["size"]) for one in told["partitions"]] == [
        (BOOT.first, BOOT.sectors),
        (ROOT.first, ROOT.sectors),
    ]


def test_the_copy_at_the_end_of_a_gpt_is_whole(tmp_path: Path) -> None:
    try:
        sgdisk = find_tool("sgdisk")
    except ToolMissingError:
        pytest.skip("sgdisk is not installed")
    path = disk(tmp_path, "gpt")
    with path.open("r+b") as stream:
        stream.seek(512)
        stream.write(bytes(512))
    told = subprocess.run([sgdisk, "--verify", str(path)], capture_output=True, text=True, check=False)
    assert "valid backup" in (told.stdout + told.stderr).lower()


def test_an_image_without_file_systems_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="no ext4"):
        Image(disk(tmp_path, "gpt"))
