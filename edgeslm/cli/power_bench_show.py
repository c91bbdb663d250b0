"""Shows results of ``power bench``: one with its windows, or two side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click

from edgeslm.cli.output import print_json, printable
from edgeslm.cli.power_words import energy_text, error_text, power_text, print_table
from edgeslm.power.benching import compare
from edgeslm.schema.bench import BenchResult

_FIGURES: Final = {
    "tokens_per_s": "tokens a second",
    "prompts_per_s": "prompts a second",
    "power_w": "power",
    "j_per_token": "energy a token",
    "net_j_per_token": "... above idle",
    "j_per_prompt": "energy a prompt",
    "net_j_per_prompt": "... above idle",
}


def _value(name: str, value: float) -> str:
    if name.endswith("per_s"):
        return f"{value:,.1f}"
    return power_text(value) if name.endswith("_w") else energy_text(value)


def print_result(result: BenchResult) -> None:
    """One result: what ran on what, its windows, their medians, and what to know about them."""
    system, model, meter = result.system, result.model, result.meter
    click.echo(click.style(f"{model.name} on {system.title} ({system.board})", bold=True))
    threads = "1 thread" if model.threads == 1 else f"{model.threads} threads"
    click.echo(f"{model.graph}, {model.quantization}, {threads}, {system.runtime}")
    click.echo(
        f"{meter.meter_class} by {printable(meter.name)}, {error_text(meter.error_share, meter.error_w)}"
    )
    click.echo(
        f"idle {power_text(result.idle_before_w)} before, {power_text(result.idle_after_w)} after; "
        f"{result.golden_right} of {result.golden_asked} golden prompts right\n"
    )
    print_table(
        ("window", ">seconds", ">prompts", ">tokens", ">power", ">energy", ">above idle", ">processor"),
        [
            (
                str(number),
                f"{window.seconds:.2f}",
                str(window.prompts),
                str(window.completion_tokens),
                power_text(window.energy_j / window.seconds),
                energy_text(window.energy_j),
                energy_text(window.net_j),
                "-" if window.temperature_c is None else f"{window.temperature_c:.1f} °C",
            )
            for number, window in enumerate(result.windows, start=1)
        ],
    )
    click.echo()
    print_table(
        (f"of {len(result.windows)}", ">median", ">least", ">most"),
        [
            (text, *(_value(name, getattr(spread, key)) for key in ("median", "least", "most")))
            for name, text in _FIGURES.items()
            for spread in [getattr(result.figures, name)]
        ],
    )
    for note in result.notes:
        click.echo(f"{click.style('note', fg='yellow')}: {note}")


def print_comparison(first: BenchResult, second: BenchResult, *, as_json: bool) -> None:
    """Two results: what else is not the same, and figure by figure whether they differ."""
    found = compare(first, second)
    if as_json:
        print_json(
            {
                "first": first.model.model_dump(mode="json") | {"board": first.system.board},
                "second": second.model.model_dump(mode="json") | {"board": second.system.board},
                "figures": [asdict(one) | {"verdict": one.verdict} for one in found],
                "differences": [list(row) for row in _differences(first, second)],
            }
        )
        return
    if differences := _differences(first, second):
        print_table(("", "first", "second"), differences)
        click.echo()
    print_table(
        ("median", ">first", ">second", ">second to first", ""),
        [
            (
                _FIGURES[one.figure],
                _value(one.figure, one.first),
                _value(one.figure, one.second),
                "-" if one.ratio is None else f"{one.ratio:.3f} ± {one.error_share:.3f}",
                one.verdict,
            )
            for one in found
        ],
    )


def _differences(first: BenchResult, second: BenchResult) -> list[tuple[str, str, str]]:
    """What else is not the same."""
    rows = []
    for part in ("model", "system", "meter", "protocol"):
        one, other = getattr(first, part).model_dump(), getattr(second, part).model_dump()
        rows += [
            (f"{part} {name}", str(one[name])[:60], str(other[name])[:60])
            for name in one
            if name != "source" and one[name] != other[name]
        ]
    return rows
