"""Block maps: which blocks of an image have to be written, and their digests.

The form is that of bmaptool, version 2.0, so that either can use the other's.

What always holds: a map that was read covers blocks of its image only, in order and none twice, and its own checksum
was compared.

Left to others: which blocks those are (:mod:`edgeslm.flash.image.finish`).

Source: bmaptool 3.x, ``BmapCreate.py``, which describes the form.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from edgeslm.errors import BlockMapError

BLOCK_BYTES = 4096
MAX_BMAP_BYTES = 16 * 2**20
_MAX_BLOCKS = 2**32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"(\d{1,10})(?:\s*-\s*(\d{1,10}))?")
_OWN = re.compile(rb"(<BmapFileChecksum>\s*)([0-9a-f]{64})(\s*</BmapFileChecksum>)")


@dataclass(frozen=True)
class BlockRange:
    """Blocks that follow each other.

    Attributes:
        first: number of the first block.
        last: number of the last one, which belongs to it.
        sha256: of their bytes.
    """

    first: int
    last: int
    sha256: str

    @property
    def blocks(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class BlockMap:
    """What of an image has to be written; what lies on the disk in the other places does not matter.

    Attributes:
        ranges: in order.
    """

    image_bytes: int
    block_bytes: int
    ranges: tuple[BlockRange, ...]

    @property
    def blocks(self) -> int:
        """How many blocks the image has."""
        return -(-self.image_bytes // self.block_bytes)

    @property
    def mapped_blocks(self) -> int:
        """How many blocks have to be written."""
        return sum(each.blocks for each in self.ranges)

    def span(self, each: BlockRange) -> tuple[int, int]:
        """A range in bytes, as (start, end) in the image."""
        return each.first * self.block_bytes, min((each.last + 1) * self.block_bytes, self.image_bytes)


def write_bmap(block_map: BlockMap) -> bytes:
    """The map as a file."""
    lines = [
        '<?xml version="1.0" ?>',
        '<bmap version="2.0">',
        f"    <ImageSize> {block_map.image_bytes} </ImageSize>",
        f"    <BlockSize> {block_map.block_bytes} </BlockSize>",
        f"    <BlocksCount> {block_map.blocks} </BlocksCount>",
        f"    <MappedBlocksCount> {block_map.mapped_blocks} </MappedBlocksCount>",
        "    <ChecksumType> sha256 </ChecksumType>",
        f"    <BmapFileChecksum> {'0' * 64} </BmapFileChecksum>",
        "    <BlockMap>",
        *(
            f'        <Range chksum="{each.sha256}"> '
            f"{each.first if each.first == each.last else f'{each.first}-{each.last}'} </Range>"
            for each in block_map.ranges
        ),
        "    </BlockMap>",
        "</bmap>",
        "",
    ]
    data = "\n".join(lines).encode()
    return _OWN.sub(rb"\g<1>" + hashlib.sha256(data).hexdigest().encode() + rb"\g<3>", data, count=1)


def read_bmap(data: bytes, *, path: str = "the block map") -> BlockMap:
    """Read a map.

    Args:
        path: of the file, for errors.

    Raises:
        BlockMapError: it is none of version 2.0 with SHA-256, or damaged, or larger than maps can be.
    """
    if len(data) > MAX_BMAP_BYTES:
        raise BlockMapError(f"{path} has more than {MAX_BMAP_BYTES} bytes", path=path)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise _damaged(path, "it declares what a block map has no use for")
    try:
        root = ET.fromstring(data)  # noqa: S314 - no document type, so no entities
    except (ET.ParseError, ValueError, LookupError) as error:
        raise _damaged(path, str(error)) from error
    version = root.get("version", "")
    if root.tag != "bmap" or not version.startswith("2."):
        raise BlockMapError(f"{path} is no block map of version 2 ({version[:20]!r})", path=path)
    if _text(root, "ChecksumType") != "sha256":
        raise BlockMapError(f"{path} has other checksums than SHA-256", path=path)
    own = _OWN.search(data)
    bare = b"" if own is None else data[: own.start(2)] + b"0" * 64 + data[own.end(2) :]
    if own is None or hashlib.sha256(bare).hexdigest() != own[2].decode():
        raise _damaged(path, "its own checksum is wrong")
    image_bytes, block_bytes = _number(root, "ImageSize", path), _number(root, "BlockSize", path)
    if block_bytes not in {512, 1024, 2048, 4096, 8192, 16384, 32768, 65536} or image_bytes <= 0:
        raise _damaged(path, "its sizes are none that it can have")
    if -(-image_bytes // block_bytes) > _MAX_BLOCKS:
        raise _damaged(path, "it is for an image larger than images can be")
    block_map = BlockMap(image_bytes, block_bytes, tuple(_ranges(root, path)))
    before = -1
    for each in block_map.ranges:
        if not before < each.first <= each.last < block_map.blocks:
            raise _damaged(path, "its ranges overlap, are not in order or lie outside of the image")
        before = each.last
    counts = (_number(root, "BlocksCount", path), _number(root, "MappedBlocksCount", path))
    if counts != (block_map.blocks, block_map.mapped_blocks):
        raise _damaged(path, "its counts do not fit its ranges")
    return block_map


def _damaged(path: str, why: str) -> BlockMapError:
    return BlockMapError(
        f"{path} is damaged: {why}", path=path, hint="Prepare the image anew, or write it without a block map"
    )


def _text(root: ET.Element, name: str) -> str:
    return (root.findtext(name) or "").strip()


def _number(root: ET.Element, name: str, path: str) -> int:
    text = _text(root, name)
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise _damaged(path, f"{name} is no number")
    return int(text)


def _ranges(root: ET.Element, path: str) -> list[BlockRange]:
    found = []
    for element in root.iterfind("BlockMap/Range"):
        match = _RANGE.fullmatch((element.text or "").strip())
        digest = element.get("chksum", "")
        if match is None or _DIGEST.fullmatch(digest) is None:
            raise _damaged(path, "a range in it has no blocks or no checksum")
        first = int(match[1])
        found.append(BlockRange(first, int(match[2]) if match[2] else first, digest))
    return found
