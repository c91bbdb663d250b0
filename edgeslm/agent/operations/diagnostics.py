"""``diagnostics``: what somebody far away needs to see why a device behaves as it does, as one small archive.

What always holds: whatever goes in went through the :class:`~edgeslm.agent.operations.redaction.Redactor`; prompts and
answers are not among it; a part that cannot be had says so and keeps none of the others out; the archive fits into one
event, and what was cut for that is named.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from edgeslm.agent.operations.arguments import cut_off, read_args
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.agent.operations.redaction import Redactor
from edgeslm.errors import EdgeslmError, OperationError
from edgeslm.schema.operation_results import MAX_BUNDLE_BYTES, Bundle, NoArgs

LOG: Final = "log.txt"
"""The part that grows with time, and is cut first; its latest lines stay."""
_LEAST_BYTES: Final = 1024
_MAX_FILE_BYTES: Final = 2_000_000

Part = Callable[[], object]
"""Gives one file of the archive: text, or what becomes JSON."""


class Diagnostics:
    """``Operation``."""

    op = "diagnostics"
    deadline_s = 120.0

    def __init__(self, parts: Mapping[str, Part], redactor: Callable[[], Redactor]) -> None:
        """Take the parts.

        Args:
            parts: what gives each file, by its name.
            redactor: knows the secrets of this device as they are by then.
        """
        self._parts = parts
        self._redactor = redactor

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        read_args(NoArgs, command)
        redactor = self._redactor()
        files: dict[str, str] = {}
        for number, (name, part) in enumerate(self._parts.items()):
            if progress.is_cancelled():
                raise OperationError("it was stopped while it ran", reason="cancelled")
            progress.tell(f"gathering {name}", number / len(self._parts))
            files[name] = _text(part, redactor)
        data, cut = pack(files)
        progress.tell(f"{len(files)} files, {len(data)} bytes", 1.0)
        result = Bundle(
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            files=tuple(files),
            cut=cut,
            data=base64.b64encode(data).decode(),
        )
        return Done(result.model_dump(mode="json"))

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        cut_off(command)


def _text(part: Part, redactor: Redactor) -> str:
    try:
        value = part()
        if isinstance(value, str):
            return redactor.text(value)[-_MAX_FILE_BYTES:]
        return json.dumps(redactor.value(value), indent=1, default=str, ensure_ascii=False)[:_MAX_FILE_BYTES]
    except (EdgeslmError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        return redactor.text(f"this part cannot be had: {type(error).__name__}: {error}")[:_LEAST_BYTES]


def pack(files: Mapping[str, str], max_bytes: int = MAX_BUNDLE_BYTES) -> tuple[bytes, tuple[str, ...]]:
    """The archive of `files`, and the names of those that had to be cut for it.

    The log is halved first, its latest lines stay; then what is largest, of which the beginning stays.
    """
    kept, cut = dict(files), set[str]()
    while len(data := _archive(kept)) > max_bytes:
        name = max(kept, key=lambda name: (name == LOG and len(kept[name]) > _LEAST_BYTES, len(kept[name])))
        half = len(kept[name]) // 2
        kept[name] = kept[name][-half:] if name == LOG else kept[name][:half]
        cut.add(name)
    return data, tuple(sorted(cut))


def _archive(files: Mapping[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=6) as archive:
        for name, text in files.items():
            data = text.encode("utf-8", "replace")
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o644, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()
