"""Holds the processor's frequency down, where the system permits it.

The kernel forgets a cap at the next boot, but not when this process dies. So before the first change the limits that
were found are written to a file, together with the boot's id; the next start puts them back from there, unless there
was a boot in between. After :meth:`FrequencyCap.close` everything is as it was found and the file is gone.

Files: Documentation/admin-guide/pm/cpufreq.rst (``scaling_max_freq`` in kHz).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeslm.power.sysfs import children, read_integer, read_text

_POLICIES = "sys/devices/system/cpu/cpufreq"
_BOOT_ID = "proc/sys/kernel/random/boot_id"
_MAX_FILE_BYTES = 16_384


@dataclass(frozen=True)
class _Policy:
    """One group of cores with a common frequency."""

    limit_file: Path
    min_khz: int
    max_khz: int
    steps_khz: tuple[int, ...]

    def allowed_khz(self, wanted_khz: int) -> int:
        """The highest frequency that can be had and does not exceed `wanted_khz`; else the lowest there is."""
        if self.steps_khz:
            return max((step for step in self.steps_khz if step <= wanted_khz), default=self.steps_khz[0])
        return min(max(wanted_khz, self.min_khz), self.max_khz)


class FrequencyCap:
    """A cap on the frequency of all cores."""

    def __init__(self, memory_file: Path, root: Path = Path("/")) -> None:
        """Look for what can be capped, and undo what a process that died left behind.

        Args:
            memory_file: where the limits that were found are kept while a cap holds.
            root: what stands for ``/``.
        """
        self._memory_file = memory_file
        self._boot_id = read_text(root / _BOOT_ID) or ""
        self._policies = tuple(filter(None, map(_policy, children(root / _POLICIES))))
        self._found_khz: dict[str, int] = {}
        self._recover()

    @property
    def permitted(self) -> bool:
        """Whether this process may set a cap."""
        return bool(self._policies) and all(
            os.access(policy.limit_file, os.W_OK) for policy in self._policies
        )

    @property
    def why_not(self) -> str | None:
        """Why it may not, as a sentence; ``None`` where it may."""
        if not self._policies:
            return "this system has no frequency to set (no cpufreq)"
        if not self.permitted:
            return f"this user may not write {self._policies[0].limit_file}"
        return None

    @property
    def range_mhz(self) -> tuple[float, float] | None:
        """Lowest and highest frequency that can be had, or ``None`` where there is none to set."""
        if not self._policies:
            return None
        return (
            min(policy.min_khz for policy in self._policies) / 1000,
            max(policy.max_khz for policy in self._policies) / 1000,
        )

    @property
    def holds(self) -> bool:
        """Whether a cap is in force."""
        return bool(self._found_khz)

    def hold(self, mhz: float) -> bool:
        """Cap all cores at the highest frequency that can be had up to `mhz`.

        Returns:
            Whether it holds on all of them; where it does not, nothing is left changed.
        """
        if not self.permitted:
            return False
        if not self._found_khz and not self._remember():
            return False
        for policy in self._policies:
            ceiling_khz = self._found_khz.get(str(policy.limit_file), policy.max_khz)
            if not _write(policy.limit_file, min(policy.allowed_khz(int(mhz * 1000)), ceiling_khz)):
                self.lift()
                return False
        return True

    def lift(self) -> None:
        """Put back the limits that were found."""
        for path, khz in self._found_khz.items():
            _write(Path(path), khz)
        self._found_khz = {}
        self._forget()

    def close(self) -> None:
        """Put back the limits that were found."""
        if self._found_khz:
            self.lift()

    def _remember(self) -> bool:
        found = {str(policy.limit_file): read_integer(policy.limit_file) for policy in self._policies}
        known = {path: khz for path, khz in found.items() if khz is not None}
        try:
            self._memory_file.parent.mkdir(parents=True, exist_ok=True)
            new = self._memory_file.with_name(f"{self._memory_file.name}.new")
            new.write_text(json.dumps({"boot_id": self._boot_id, "max_khz": known}), "utf-8")
            new.replace(self._memory_file)
        except OSError:
            return False
        self._found_khz = known
        return True

    def _recover(self) -> None:
        try:
            with self._memory_file.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES)
        except OSError:
            return
        left = _limits_left(content, self._boot_id)
        for policy in self._policies:
            khz = left.get(str(policy.limit_file))
            # The file could say anything; only a limit that this processor can have is put back.
            if isinstance(khz, int) and policy.min_khz <= khz <= policy.max_khz:
                _write(policy.limit_file, khz)
        self._forget()

    def _forget(self) -> None:
        with suppress(OSError):
            self._memory_file.unlink()


def _limits_left(content: bytes, boot_id: str) -> dict[str, object]:
    """Limits by file that a process of this boot had found, by what it wrote down."""
    try:
        memory: object = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(memory, dict) or memory.get("boot_id") != boot_id:
        return {}
    left = memory.get("max_khz")
    return left if isinstance(left, dict) else {}


def _policy(directory: Path) -> _Policy | None:
    least, most = read_integer(directory / "cpuinfo_min_freq"), read_integer(directory / "cpuinfo_max_freq")
    if not directory.name.startswith("policy") or least is None or most is None:
        return None
    steps = (read_text(directory / "scaling_available_frequencies") or "").split()
    return _Policy(
        limit_file=directory / "scaling_max_freq",
        min_khz=least,
        max_khz=most,
        steps_khz=tuple(sorted(int(step) for step in steps if step.isdigit())),
    )


def _write(path: Path, khz: int) -> bool:
    try:
        path.write_text(f"{khz}\n", "ascii")
    except OSError:
        return False
    return True
