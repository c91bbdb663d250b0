"""How a benchmark runs and shows its figures: one JSON object, or a table.

Everything is measured in the run. A figure that cannot be had is left out; its reason stands under ``notes``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.agent_rig import MeasurementError, say
from edgeslm.errors import EdgeslmError

Found = dict[str, Any]
Bars = Mapping[str, tuple[str, float]]
"""By figure: relation and value that it is held to."""


@dataclass(frozen=True)
class Group:
    """Figures that one measurement gives.

    Attributes:
        measure: takes them; its argument says whether a rough look is enough. Dictionaries among its values are
            details; ``peers`` are figures of others, and ``noise`` how much a figure varies by itself.
    """

    keys: tuple[str, ...]
    measure: Callable[[bool], Found]


@dataclass(frozen=True)
class Benchmark:
    """A set of figures with their bars.

    Attributes:
        name: module to call it by.
        ratios: of the figures to their peers'.
        conditions: what the machine is like, taken before.
    """

    name: str
    about: str
    groups: tuple[Group, ...]
    bars: Bars
    ratios: Callable[[Found, Mapping[str, float]], dict[str, float]] = lambda found, peers: {}
    conditions: Callable[[], Found] = dict

    def main(self) -> int:
        """Parse the command line, measure, print."""
        keys = [key for group in self.groups for key in group.keys]
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.about)
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
        parser.add_argument("--quick", action="store_true", help="fewer of everything, for a first look")
        parser.add_argument("--only", default="", metavar="KEY,...", help=f"only these: {', '.join(keys)}")
        flags = parser.parse_args()
        only = frozenset(filter(None, flags.only.split(",")))
        if unknown := sorted(only - set(keys)):
            parser.error(f"no such figure: {', '.join(unknown)}")
        report = self.measure(only, quick=flags.quick)
        if flags.as_json:
            print(json.dumps(report, indent=2))
        else:
            _print_table(report)
        return 0

    def measure(self, only: frozenset[str], *, quick: bool) -> dict[str, Any]:
        """Take the figures named in `only`, or all when it is empty."""
        found: Found = {}
        notes: dict[str, str] = {}
        peers: dict[str, float] = {}
        began_s, around = time.monotonic(), self.conditions()
        notes.update(around.pop("notes", {}))
        for group in self.groups:
            if only and not only & set(group.keys):
                continue
            say(f"measuring {', '.join(group.keys[:4])}")
            try:
                figures = group.measure(quick)
            except Exception as error:  # the other figures are still to be had
                if not isinstance(error, (MeasurementError, EdgeslmError, OSError)):
                    traceback.print_exc()
                notes.update(dict.fromkeys(group.keys, f"{type(error).__name__}: {error}"))
                say(f"failed: {error}")
                continue
            peers.update(figures.pop("peers", {}))
            notes.update(figures.pop("notes", {}))
            missing = [key for key in group.keys if key not in figures and key not in peers]
            notes.update({key: "this run gave no value; see stderr" for key in missing if key not in notes})
            found.update(figures)
        nested = {key for key, value in found.items() if isinstance(value, (dict, list, str))}
        shown = {key: value for key, value in found.items() if not only or key in only or key in nested}
        around["took_s"] = round(time.monotonic() - began_s, 1)
        around["load_1min_after"] = round(os.getloadavg()[0], 2)
        around["quick"] = quick
        noise = found.get("noise", {})
        return {
            **_rounded(shown),
            "peers": _rounded(peers),
            "ratios": _rounded(self.ratios(found, peers)),
            "bars": {
                key: _bar(bar, found[key], noise.get(key)) for key, bar in self.bars.items() if key in shown
            },
            "conditions": around,
            "notes": notes,
        }


def _bar(bar: tuple[str, float], value: float, noise: float | None) -> dict[str, Any]:
    relation, limit = bar
    holds = {"<": value < limit, "<=": value <= limit, ">=": value >= limit}[relation]
    verdict: dict[str, Any] = {"bar": f"{relation} {limit:g}", "met": holds}
    if noise is not None and abs(value - limit) < noise:
        verdict["within_noise"] = True
    return verdict


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 1 else round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _print_table(report: dict[str, Any]) -> None:
    parts = {key: value for key, value in report.items() if not isinstance(value, (int, float))}
    for key in (key for key in report if key not in parts):
        bar = report["bars"].get(key)
        verdict = f"{bar['bar']:>8}  {'met' if bar['met'] else 'MISSED'}" if bar else ""
        verdict += ", but within the noise" if bar and "within_noise" in bar else ""
        print(f"{key:<28}{report[key]:>12.4g}  {verdict}")
    del parts["bars"]
    for name, part in parts.items():
        if not part:
            continue
        print(f"\n{name}")
        rows = part if isinstance(part, dict) else {name: part}
        for key, value in rows.items():
            print(f"  {key:<42}{value if not isinstance(value, float) else format(value, '.4g')}")


def run(benchmark: Benchmark) -> None:
    """Be the program."""
    sys.exit(benchmark.main())
