"""Tiny packages, and ZIP files that no packer would write.

The ZIP writer here is separate from the one in edgeslm on purpose: that both give the same bytes is a test.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeslm.models.packing import pack


def _common(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """What local header and directory record have in common, in order."""
    names = ("version", "flags", "method", "time", "date", "crc", "packed", "size")
    return (*(fields[name] for name in names), len(fields["name"]), len(fields["extra"]))


@dataclass
class RawMember:
    """A member with any field of its local header or directory record replaced."""

    name: bytes
    data: bytes
    local: Mapping[str, Any] = field(default_factory=dict)
    central: Mapping[str, Any] = field(default_factory=dict)


class SlmBuilder:
    """Makes drafts, members, manifests and whole files, right or wrong."""

    graph = b"\x1c\x00\x00\x00TFL3" + bytes(range(256)) * 4
    tokenizer = b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    golden = b'{"prompt": "light on", "text": "on"}\n{"prompt": "status", "json": {"state": "on"}}\n'
    license = b"Licence text\n"

    def members(self, **changes: bytes | None) -> dict[str, bytes]:
        """Bytes by name; a change of ``None`` leaves one out. Two underscores stand for a dot."""
        found: dict[str, bytes] = {
            "tiny.tflite": self.graph,
            "tokenizer.json": self.tokenizer,
            "golden.jsonl": self.golden,
            "LICENSE.txt": self.license,
        }
        for name, data in changes.items():
            if data is None:
                del found[name.replace("__", ".")]
            else:
                found[name.replace("__", ".")] = data
        return found

    def draft(self, **changes: Any) -> dict[str, Any]:
        draft = {
            "format": 1,
            "name": "tiny",
            "version": "1.0.0",
            "task": "generate",
            "description": "A package for tests",
            "graphs": [
                {
                    "file": "tiny.tflite",
                    "runtimes": ["litert"],
                    "quantization": "int8 weights",
                    "proof": {"tokens": [1], "greedy": [2], "logit_ids": [2], "logits": [0.5], "atol": 0.01},
                }
            ],
            "tokenizer": {"kind": "tokenizers-json", "file": "tokenizer.json"},
            "context_tokens": 64,
            "max_prompt_tokens": 32,
            "max_answer_tokens": 16,
            "golden": "golden.jsonl",
            "requires": {"ram_mb": 1, "agent": "0.1.0"},
            "licenses": [{"spdx": "Apache-2.0", "of": "all", "file": "LICENSE.txt"}],
        }
        return {name: value for name, value in {**draft, **changes}.items() if value is not None}

    def manifest(self, members: Mapping[str, bytes] | None = None, **changes: Any) -> bytes:
        """As the packer writes it; `files` is computed unless it is among the changes."""
        files = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for name, data in (self.members() if members is None else members).items()
        }
        draft = self.draft(**{"files": files, **changes})
        return json.dumps(draft, indent=1, sort_keys=True).encode() + b"\n"

    def package(
        self, members: Mapping[str, bytes] | None = None, manifest: bytes | None = None, **changes: Any
    ) -> list[RawMember]:
        """The members of a right package, in order, ready to be spoiled."""
        found = self.members() if members is None else members
        head = self.manifest(found, **changes) if manifest is None else manifest
        rest = [RawMember(name.encode(), found[name]) for name in sorted(found)]
        return [RawMember(b"manifest.json", head), *rest]

    def raw(
        self, members: Sequence[RawMember], *, prefix: bytes = b"", suffix: bytes = b"", **end: Any
    ) -> bytes:
        """A ZIP file of `members`, spoiled as they ask."""
        body, records = bytearray(prefix), bytearray()
        for member in members:
            fields: dict[str, Any] = {
                "version": 20, "flags": 0, "method": 0, "time": 0, "date": 0x21, "name": member.name,
                "crc": zlib.crc32(member.data), "packed": len(member.data), "size": len(member.data),
                "extra": b"",
            }  # fmt: skip
            here = {**fields, **member.local}
            there = {
                **fields,
                "attributes": 0o100644 << 16,
                "offset": len(body),
                "comment": b"",
                **member.central,
            }
            body += b"PK\3\4" + struct.pack("<5H3I2H", *_common(here))
            body += here["name"] + here["extra"] + member.data
            records += b"PK\1\2" + struct.pack("<6H3I2H", 0x0314, *_common(there))
            records += struct.pack("<3H2I", len(there["comment"]), 0, 0, there["attributes"], there["offset"])
            records += there["name"] + there["extra"] + there["comment"]
        last = {
            "disk": 0, "count": len(members), "total": len(members), "length": len(records),
            "offset": len(body), "comment": b"", "between": b"", **end,
        }  # fmt: skip
        numbers = (last["count"], last["total"], last["length"], last["offset"], len(last["comment"]))
        tail = b"PK\5\6" + struct.pack("<4H2IH", last["disk"], 0, *numbers)
        return bytes(body + records + last["between"] + tail + last["comment"] + suffix)

    def pack(self, out: Path, members: Mapping[str, bytes] | None = None, **changes: Any) -> str:
        """Write a package with edgeslm's own packer; its sha256."""
        return pack(self.draft(**changes), self.sources(out.parent / f".{out.name}-members", members), out)

    def sources(self, directory: Path, members: Mapping[str, bytes] | None = None) -> dict[str, Path]:
        """Write the members as files."""
        directory.mkdir(exist_ok=True)
        found = self.members() if members is None else members
        for name, data in found.items():
            (directory / name).write_bytes(data)
        return {name: directory / name for name in found}


def tree(root: Path) -> dict[str, bytes | str | None]:
    """All that is under `root`: bytes of files, targets of links, ``None`` for directories."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(name="tree")
def tree_of():
    return tree


@pytest.fixture
def slm() -> SlmBuilder:
    return SlmBuilder()


@pytest.fixture
def raw_member() -> type[RawMember]:
    return RawMember
