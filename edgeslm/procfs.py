"""What the kernel says about this machine in ``/proc``; ``None`` where it does not say.

Sources: proc_meminfo(5), proc_cpuinfo(5), proc_sys_kernel(5).
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def memory_kib(row: str, meminfo: Path = _MEMINFO) -> int | None:
    """A row of the table of memory, such as ``MemAvailable``, in units of 1,024 bytes."""
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text("utf-8").splitlines())
        return int(rows[row].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """What the processor can do, in the kernel's words: ``flags`` on x86, ``Features`` on ARM."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    rows = (line.partition(":") for line in lines)
    return frozenset(
        flag
        for name, _, text in rows
        if name.strip().lower() in {"flags", "features"}
        for flag in text.split()
    )


def boot_id(path: Path = _BOOT_ID) -> str | None:
    """What tells this boot from others; monotonic time can be compared within one."""
    try:
        with path.open() as file:
            return file.read(64).strip() or None
    except OSError:
        return None
