"""Figures of making boards ready: ``python -m benchmarks.flash [--json] [--quick] [--only KEY,...]``.

Each group is measured by a module of its own, beside its peer in the same run where it has one: preparing an image,
writing a card against ``dd`` and ``bmaptool``, an emulated board that is started and killed, the service's exposure.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.report import Benchmark, Found, Group, run

BARS = {
    "prepare_s": ("<", 20.0),
    "prepare_mb": ("<", 200.0),
    "write_vs_dd": (">=", 0.95),
    "power_cut_points": (">=", 10),
    "power_cut_survived": (">=", 1.0),
    "exposure": ("<=", 2.0),
}


def _part(name: str) -> Callable[[bool], Found]:
    """The figures of ``benchmarks/flash_<name>.py``, whose ``measure(notes, *, quick)`` takes them."""

    def measure(quick: bool) -> Found:
        notes: dict[str, str] = {}
        found: dict[str, Any] = importlib.import_module(f"benchmarks.flash_{name}").measure(
            notes, quick=quick
        )
        return {**found, "notes": {**found.pop("notes", {}), **notes}}

    return measure


GROUPS = (
    Group(("prepare_s", "prepare_mb"), _part("prepare")),
    Group(("write_vs_dd",), _part("write")),
    Group(("power_cut_points", "power_cut_survived", "boot_to_answer_s"), _part("boot")),
    Group(("exposure",), _part("service")),
)


if __name__ == "__main__":
    run(Benchmark("flash", __doc__ or "", GROUPS, BARS))
