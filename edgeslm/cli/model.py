"""``edgeslm model``: packages on disk, and running one in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeslm.cli import wiring
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.cli.requests import Printer, parse_options, read_prompts, request_options
from edgeslm.errors import RequestError
from edgeslm.schema.config import RuntimeChoice

if TYPE_CHECKING:
    from edgeslm.models.inspect import PackageSummary
    from edgeslm.schema.message import FinishReason


@click.group()
def model() -> None:
    """Inspect, verify, pack and run model packages."""


@model.command("list")
@json_option
@reporting_errors
def list_builtin(as_json: bool) -> None:
    """List the packages that ship with edgeslm."""
    names = wiring.builtin_packages()
    if as_json:
        print_json(names)
        return
    for name in names:
        click.echo(name)


@model.command()
@click.argument("package")
@json_option
@reporting_errors
def info(package: str, as_json: bool) -> None:
    """Show what PACKAGE (a .slm file or a shipped name) is and needs."""
    from edgeslm.models.inspect import summary  # noqa: PLC0415

    found = summary(wiring.package_path(package))
    if as_json:
        print_json(found)
    else:
        click.echo(_describe(found))


@model.command()
@click.argument("package")
@click.option("--run/--no-run", "run_it", default=True, help="Also load it, and compute its golden vector.")
@json_option
@reporting_errors
def verify(package: str, run_it: bool, as_json: bool) -> None:
    """Check every hash of PACKAGE, then prove its graph on this machine's runtime."""
    from edgeslm.models.inspect import verify_package  # noqa: PLC0415

    path = wiring.package_path(package)
    report = verify_package(path)
    rules = _check_rules(path) if any(member.role == "rules" for member in report.members) else 0
    lines = [f"{member.name}: {member.size_bytes:,} bytes, sha256 as stated" for member in report.members]
    lines.append(f"{report.name}@{report.version} is whole: sha256 {report.sha256}")
    if rules:
        lines.append(f"{rules} rules in it are well formed")
    data = report.model_dump(mode="json")
    if run_it:
        loaded = wiring.open_model(str(path))
        data["proved"] = {
            "graph": loaded.graph_file,
            "runtime": loaded.runtime_name,
            "load_s": round(loaded.load_s, 4),
        }
        lines.append(f"{loaded.graph_file} computes its golden vector on {loaded.runtime_name}")
    if as_json:
        print_json(data)
    else:
        click.echo("\n".join(lines))


@model.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Default: DIRECTORY.slm.")
@click.option(
    "--rules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of rules for the package to bring along. Default: DIRECTORY/rules, if there is one.",
)
@json_option
@reporting_errors
def pack(directory: Path, out: Path | None, rules: Path | None, as_json: bool) -> None:
    """Write DIRECTORY (manifest.yaml or manifest.json, and the files it names) as a package."""
    from edgeslm.models.inspect import summary  # noqa: PLC0415
    from edgeslm.models.packing import RULES_NAME, pack_directory  # noqa: PLC0415

    written = out or Path(f"{directory.resolve().name}.slm")
    if rules or (directory / RULES_NAME).is_dir():
        from edgeslm.agent.rules.loading import load_rules  # noqa: PLC0415

        load_rules([rules or directory / RULES_NAME])
    sha256 = pack_directory(directory, written, rules)
    if as_json:
        print_json(summary(written))
    else:
        click.echo(f"{written}: {written.stat().st_size:,} bytes, sha256 {sha256}")


@model.command()
@click.argument("package")
@request_options
@click.option(
    "--runtime",
    type=click.Choice(["auto", "ai-edge-litert", "tflite-runtime"]),
    default="auto",
    help="TFLite runtime.",
)
@click.option("--threads", type=click.IntRange(1, 64), help="Inference threads; default from the board.")
@reporting_errors
def run(
    package: str,
    text: str | None,
    as_json: bool,
    batch: bool,
    runtime: RuntimeChoice,
    threads: int | None,
    **flags: Any,
) -> None:
    """Answer TEXT with PACKAGE in this process; no broker is needed. ``-`` reads standard input."""
    from edgeslm.agent.answering import answer_request  # noqa: PLC0415
    from edgeslm.agent.intake import error_result  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.power.meter import EstimatedMeter  # noqa: PLC0415
    from edgeslm.schema.message import PromptRequest  # noqa: PLC0415

    options = parse_options(flags)
    prompts = read_prompts(text, batch=batch)
    loaded = wiring.open_model(package, runtime=runtime, threads=threads)
    meter = EstimatedMeter(choose_board(None).power)
    printer = Printer(as_json=as_json)
    for number, prompt in enumerate(prompts, start=1):
        request = PromptRequest(id=str(number), prompt=prompt, options=options)
        try:
            result = answer_request(
                loaded,
                meter,
                request,
                "local",
                accepted_s=time.monotonic(),
                on_text=printer.delta,
                should_stop=_deadline(options.deadline_ms),
            )
        except RequestError as error:
            result = error_result(request.id, "local", error)
        printer.result(result)
    if printer.failures:
        sys.exit(1)


def _check_rules(path: Path) -> int:
    from edgeslm.cli.wiring_rules import check_package_rules  # noqa: PLC0415

    return check_package_rules(path)


def _describe(found: PackageSummary) -> str:
    rows = [
        ("package", f"{found.name}@{found.version}, {found.size_bytes:,} bytes"),
        ("sha256", found.sha256),
        ("task", found.task),
        ("about", found.description),
        *(
            ("graph", f"{g.file} for {' or '.join(g.runtimes)}: {g.quantization}, {g.size_bytes:,} bytes")
            for g in found.graphs
        ),
        ("tokens", f"context {found.context_tokens}, prompt at most {found.max_prompt_tokens}"),
        ("answers", "JSON objects" if found.json_answers else "text"),
        ("golden", f"{found.golden_cases} prompts with known answers"),
        *([("rules", ", ".join(found.rules))] if found.rules else []),
        ("needs", f"{found.requires.ram_mb} MB of memory, agent {found.requires.agent} or later"),
        *(("licence", f"{item.spdx}: {item.of}") for item in found.licenses),
    ]
    return "\n".join(f"{name:8} {text}" for name, text in rows)


def _deadline(deadline_ms: int | None) -> Callable[[], FinishReason | None] | None:
    if deadline_ms is None:
        return None
    deadline_s = time.monotonic() + deadline_ms / 1e3
    return lambda: "deadline" if time.monotonic() >= deadline_s else None
