"""Images that are whole, and images that are not: known before a card is touched."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from edgeslm.errors import (
    BlockMapError,
    ImageContentError,
    ImageDigestError,
    ImageError,
    ImageSourceError,
    PartitionError,
)
from edgeslm.flash.disks.progress import Pace, Progress
from edgeslm.flash.disks.source import map_beside, open_raw, ready_image

MIB = 2**20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, preset=0),
    "gz": lambda data: gzip.compress(data, 1),
    "zst": zstandard.compress,
}


def ready(path: Path, sha256: str | None = None, *, with_map: bool = True, work: Path | None = None) -> bytes:
    """What would be written of the image."""

    def silent(progress: Progress) -> None:
        del progress

    with ready_image(path, sha256=sha256, with_map=with_map, work_dir=work, tell=silent) as raw:
        return raw.path.read_bytes()


def test_a_raw_image_is_taken_as_it_lies_there(make_image: Callable[..., Path]) -> None:
    image = make_image()
    assert ready(image) == image.read_bytes()
    assert ready(image, hashlib.sha256(image.read_bytes()).hexdigest().upper()) == image.read_bytes()


@pytest.mark.parametrize("form", PACKERS)
def test_a_packed_image_is_unpacked_and_nothing_of_that_is_left(
    form: str, make_image: Callable[..., Path], tmp_path: Path
) -> None:
    content, work = make_image(data=(0, 5)).read_bytes(), tmp_path / "work"
    work.mkdir()
    packed = tmp_path / f"packed.img.{form}"
    packed.write_bytes(PACKERS[form](content))
    assert ready(packed, work=work) == content
    assert ready(packed, hashlib.sha256(packed.read_bytes()).hexdigest(), work=work) == content
    assert ready(packed, hashlib.sha256(content).hexdigest(), work=work) == content
    assert not list(work.iterdir())


@pytest.mark.parametrize("form", PACKERS)
def test_a_packed_image_that_was_cut_off_is_none(
    form: str, make_image: Callable[..., Path], tmp_path: Path
) -> None:
    packed = tmp_path / f"packed.img.{form}"
    data = PACKERS[form](make_image(data=(0, 3)).read_bytes())
    packed.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageSourceError) as raised:
        ready(packed, work=tmp_path)
    assert raised.value.exit_code == 4
    assert raised.value.hint


@pytest.mark.parametrize("form", ["raw", "xz"])
def test_an_image_with_another_digest_than_asked_for_is_none(
    form: str, make_image: Callable[..., Path], tmp_path: Path
) -> None:
    image = make_image(data=(0, 3))
    if form == "xz":
        image.write_bytes(PACKERS["xz"](image.read_bytes()))
    with pytest.raises((ImageContentError, ImageDigestError)) as raised:
        ready(image, "0" * 64, work=tmp_path)
    assert raised.value.exit_code == 4


def test_the_digest_beside_an_image_is_looked_at(make_image: Callable[..., Path]) -> None:
    image = make_image()
    beside = image.with_name("sd.img.sha256")
    beside.write_text(f"{hashlib.sha256(image.read_bytes()).hexdigest()}  sd.img\n", "utf-8")
    assert ready(image)
    with image.open("r+b") as stream:
        stream.seek(7 * MIB)
        stream.write(b"changed")
    with pytest.raises(ImageContentError, match="expected"):
        ready(image)
    beside.write_text("no digest at all\n", "utf-8")
    with pytest.raises(ImageError):
        ready(image)


def test_an_image_that_was_cut_off_is_known_by_its_partition_table(make_image: Callable[..., Path]) -> None:
    image = make_image(mib=12)
    with image.open("r+b") as stream:
        stream.truncate(6 * MIB)
    with pytest.raises(PartitionError, match="ends at byte"):
        ready(image)
    with image.open("r+b") as stream:
        stream.truncate(6 * MIB + 7)
    with pytest.raises(ImageContentError, match="cut off"):
        ready(image)


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7" + bytes(8184), bytes(MIB), b"BZh9" + bytes(1020)])
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holiday.pdf"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        ready(path)


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.img"):
        ready(tmp_path / "no.img")


def test_a_block_map_is_found_where_bmaptool_finds_it(tmp_path: Path) -> None:
    for name in ("sd.img.xz.bmap", "sd.img.bmap", "sd.bmap"):
        (tmp_path / name).touch()
        assert map_beside(tmp_path / "sd.img.xz") == tmp_path / name
        (tmp_path / name).unlink()
    assert map_beside(tmp_path / "sd.img.xz") is None


def test_a_packed_image_has_its_block_map_beside_it(
    make_image: Callable[..., Path], make_map: Callable[..., Path], tmp_path: Path
) -> None:
    image = make_image(mib=20, data=(0, 9))
    make_map(image, (0, 9))
    packed = tmp_path / "sd.img.zst"
    packed.write_bytes(PACKERS["zst"](image.read_bytes()))
    with ready_image(packed, sha256=None, with_map=True, work_dir=None, tell=lambda progress: None) as raw:
        assert raw.layout.written_bytes == 2 * MIB
    with ready_image(packed, sha256=None, with_map=False, work_dir=None, tell=lambda progress: None) as raw:
        assert raw.layout.written_bytes == 20 * MIB


def test_a_damaged_block_map_is_an_error_and_not_left_aside(
    make_image: Callable[..., Path], make_map: Callable[..., Path]
) -> None:
    image = make_image()
    path = make_map(image, (0, 9))
    path.write_bytes(path.read_bytes().replace(b"2304", b"2305"))
    with pytest.raises(BlockMapError, match=r"sd\.img\.bmap"):
        ready(image)
    assert ready(image, with_map=False)


def test_the_fingerprint_changes_with_the_image(make_image: Callable[..., Path]) -> None:
    image = make_image()
    with open_raw(image) as raw:
        first = raw.fingerprint
        assert raw.fingerprint == first
    with image.open("r+b") as stream:
        stream.seek(5 * MIB)
        stream.write(b"changed")
    with open_raw(image) as raw:
        assert raw.fingerprint != first


def test_a_pace_tells_rate_and_time_left_of_the_last_seconds() -> None:
    now = [0.0]
    pace = Pace("writing", 1000 * MIB, lambda: now[0])
    assert pace.at(MIB).rate_bytes_s is None
    for second in range(1, 60):
        now[0] = second
        told = pace.at(second * 10 * MIB)
    assert told.rate_bytes_s == pytest.approx(10 * MIB)
    assert told.left_s == pytest.approx(41.0)
    for second in range(60, 90):
        now[0] = second
        told = pace.at(590 * MIB + (second - 59) * MIB)
    assert told.rate_bytes_s == pytest.approx(MIB)
