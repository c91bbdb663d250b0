"""``edgeslm model``: packages on disk, and running one in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from edgeslm.cli import wiring
from edgeslm.cli.output import json_option, print_json, reporting_errors
from edgeslm.cli.requests import Printer, parse_options, read_asked, request_options, together_option
from edgeslm.codec import describe
from edgeslm.errors import RequestError, UsageError
from edgeslm.schema.config import RuntimeChoice

if TYPE_CHECKING:
    from edgeslm.models.inspect import PackageSummary
    from edgeslm.schema.message import FinishReason, Task
    from edgeslm.schema.package import ChatTemplateSpec, Manifest


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
        loaded = wiring.open_served(str(path))
        data["proved"] = {
            "graph": loaded.graph_file,
            "runtime": loaded.runtime_name,
            "load_s": round(loaded.load_s, 4),
        }
        lines.append(f"{loaded.graph_file} computes its golden vector on {loaded.runtime_name}")
        memory = wiring.memory_of(loaded)
        if memory is not None:
            data["proved"] |= {"needed_bytes": memory.needed_bytes, "grown_bytes": memory.grown_bytes}
            lines.append(
                f"it takes {memory.grown_bytes / 2**20:.0f} MiB of memory,"
                f" {memory.needed_bytes / 2**20:.0f} were predicted"
            )
    if as_json:
        print_json(data)
    else:
        click.echo("\n".join(lines))


@model.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Default: SOURCE.slm.")
@click.option(
    "--rules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of rules for the package to bring along. Default: SOURCE/rules, if there is one.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For a .tflite file that classifies: what its scores are for, one label a line.",
)
@click.option("--name", help="For a single file: name of the package. Default: the file's.")
@click.option("--package-version", "version", help="For a single file: its version.  [default: 1.0.0]")
@click.option("--license", "license_name", help="For a single file: SPDX identifier of its licence.")
@json_option
@reporting_errors
def pack(
    source: Path,
    out: Path | None,
    rules: Path | None,
    labels_file: Path | None,
    name: str | None,
    version: str | None,
    license_name: str | None,
    as_json: bool,
) -> None:
    """Write SOURCE as a package.

    SOURCE is a directory with manifest.yaml or manifest.json and the files it names, a .tflite file that takes arrays
    and gives arrays, or a .litertlm bundle that answers in text. The manifest of such a file is made here, with a
    golden vector that devices have to compute as well.
    """
    from edgeslm.models.inspect import summary  # noqa: PLC0415
    from edgeslm.models.packing import RULES_NAME, pack_directory  # noqa: PLC0415

    if source.is_file():
        written = out or Path(f"{source.stem}.slm")
        if rules is not None:
            raise UsageError("--rules goes with a directory")
        sha256 = _pack_graph(source, written, labels_file, name, version, license_name)
    else:
        if labels_file or name or version or license_name:
            raise UsageError(
                "--labels, --name, --package-version and --license go with a .tflite file",
                hint="A directory says all that in its manifest",
            )
        written = out or Path(f"{source.resolve().name}.slm")
        if rules or (source / RULES_NAME).is_dir():
            from edgeslm.agent.rules.loading import load_rules  # noqa: PLC0415

            load_rules([rules or source / RULES_NAME])
        sha256 = pack_directory(source, written, rules, _examine)
    if as_json:
        print_json(summary(written))
    else:
        click.echo(f"{written}: {written.stat().st_size:,} bytes, sha256 {sha256}")


@model.command()
@click.argument("package")
@request_options
@together_option
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
    together: bool,
    runtime: RuntimeChoice,
    threads: int | None,
    task: Task | None,
    tensor_file: Path | None,
    messages: str | None,
    **flags: Any,
) -> None:
    """Answer TEXT with PACKAGE in this process; no broker is needed. ``-`` reads standard input.

    Without --task the package does what it is made for.
    """
    from edgeslm.agent.answering import answer_request  # noqa: PLC0415
    from edgeslm.agent.intake import error_result  # noqa: PLC0415
    from edgeslm.agent.sessions import Sessions  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.power.meter import EstimatedMeter  # noqa: PLC0415
    from edgeslm.runtime.outcome import check_task  # noqa: PLC0415
    from edgeslm.schema.message import PromptRequest  # noqa: PLC0415

    options = parse_options(flags)
    loaded = wiring.open_served(package, runtime=runtime, threads=threads)
    meter = EstimatedMeter(choose_board(None).power)
    printer = Printer(as_json=as_json)
    sessions = Sessions()
    asked = read_asked(
        text,
        batch=batch,
        together=together,
        task=task or loaded.tasks[0],
        tensor_file=tensor_file,
        messages=messages,
    )
    for number, fields in enumerate(asked, start=1):
        try:
            request = PromptRequest(**fields, id=str(number), options=options)
        except ValidationError as error:
            raise UsageError(describe(error)) from error
        try:
            check_task(request, loaded.name, loaded.tasks)
            result = answer_request(
                loaded,
                meter,
                request,
                "local",
                accepted_s=time.monotonic(),
                sessions=sessions,
                on_text=printer.delta,
                should_stop=_deadline(options.deadline_ms),
            )
        except RequestError as error:
            result = error_result(request.id, "local", error)
        printer.result(result)
    if printer.failures:
        sys.exit(1)


def _pack_graph(
    graph: Path,
    out: Path,
    labels_file: Path | None,
    name: str | None,
    version: str | None,
    license_name: str | None,
) -> str:
    from edgeslm.forge.bundle_package import SUFFIX, draft_bundle  # noqa: PLC0415
    from edgeslm.forge.graph_package import draft_package, name_of  # noqa: PLC0415
    from edgeslm.models.packing import pack as write  # noqa: PLC0415

    if license_name is None:
        raise UsageError("under which licence?", hint="Name it with --license, for example Apache-2.0")
    named = {"name": name or name_of(graph), "version": version or "1.0.0", "license_name": license_name}
    if graph.suffix == SUFFIX:
        if labels_file is not None:
            raise UsageError("--labels goes with a .tflite file: a bundle answers in text")
        return write(draft_bundle(graph, **named), {graph.name: graph}, out)
    labels: list[str] = []
    if labels_file is not None:
        try:
            lines = labels_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{labels_file} cannot be read: {error}") from error
        labels = [line.strip() for line in lines if line.strip()]
        if not labels:
            raise UsageError(f"{labels_file} holds no label")
    draft = draft_package(graph, labels=labels, **named)
    return write(draft, {graph.name: graph}, out)


def _examine(manifest: Manifest, files: Mapping[str, Path]) -> None:
    if manifest.chat_template is not None:
        from edgeslm.runtime.chat_renderer import examine  # noqa: PLC0415

        examine(manifest, files)


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
        *(
            [("tokens", f"context {found.context_tokens}, prompt at most {found.max_prompt_tokens}")]
            if found.tokenizer
            else []
        ),
        *([("chat", _chat_words(found.chat_template))] if found.chat_template is not None else []),
        ("answers", _answer_words(found)),
        *(
            [("golden", f"{found.golden_cases} prompts with known answers")]
            if found.task == "generate"
            else []
        ),
        *([("rules", ", ".join(found.rules))] if found.rules else []),
        ("needs", f"{found.requires.ram_mb} MB of memory, agent {found.requires.agent} or later"),
        *(("licence", f"{item.spdx}: {item.of}") for item in found.licenses),
    ]
    return "\n".join(f"{name:8} {text}" for name, text in rows)


def _chat_words(found: ChatTemplateSpec) -> str:
    system = f", which begins with: {found.system[:200]}" if found.system else ""
    return f"prompts are put into a conversation by {found.file}{system}"


def _answer_words(found: PackageSummary) -> str:
    if found.task == "classify":
        return f"one of {len(found.labels)} labels: {', '.join(found.labels[:8])}" + (
            ", ..." if len(found.labels) > 8 else ""
        )
    if found.task == "generate":
        return "JSON objects" if found.json_answers else "text"
    return "an embedding" if found.task == "embed" else "arrays"


def _deadline(deadline_ms: int | None) -> Callable[[], FinishReason | None] | None:
    if deadline_ms is None:
        return None
    deadline_s = time.monotonic() + deadline_ms / 1e3
    return lambda: "deadline" if time.monotonic() >= deadline_s else None
