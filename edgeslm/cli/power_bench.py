"""``edgeslm power bench``: what a model takes on this board, as a result that can be shared and compared."""

from __future__ import annotations

import itertools
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import numpy as np
from pydantic import ValidationError

import edgeslm
from edgeslm.cli import wiring
from edgeslm.cli.output import print_json
from edgeslm.cli.power_bench_show import print_comparison, print_result
from edgeslm.cli.power_common import Settings, monitored, power_command
from edgeslm.cli.power_words import time_text
from edgeslm.codec import describe
from edgeslm.errors import ConfigError, UsageError
from edgeslm.models.package import MAX_GOLDEN_BYTES, parse_golden
from edgeslm.power.benching import REPEATS, WINDOW_S, Phase, Trace, figures, notes
from edgeslm.power.cpu import BusyCores, CpuClock
from edgeslm.power.monitor import PowerMonitor
from edgeslm.power.port import MeterFacts, Throttling, Vitals
from edgeslm.runtime.model import Answer, LoadedModel
from edgeslm.schema.bench import (
    BenchMeter,
    BenchModel,
    BenchProtocol,
    BenchResult,
    BenchSystem,
    BenchWindow,
)
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options
from edgeslm.schema.package import GoldenCase

_SWITCH_INTERVAL_S: Final = 0.0001
"""As the agent has it: the meters are read while the model computes."""
_MAX_FILE_BYTES: Final = 1_000_000
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("model", required=False)
@click.option(
    "--window-s",
    type=click.FloatRange(0.1, 3600),
    default=WINDOW_S,
    show_default=True,
    help="Least seconds of each phase.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    default=REPEATS,
    show_default=True,
    help="Windows, of which the median counts.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), help="Inference threads; default from settings or board."
)
@click.option("--out", "-o", type=_FILE, help="Write the result here, as JSON.")
@click.option("--compare", "files", type=_FILE, nargs=2, help="Run nothing; compare two result files.")
@power_command
def bench(
    settings: Settings,
    model: str | None,
    window_s: float,
    repeats: int,
    threads: int | None,
    out: Path | None,
    files: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Measure what MODEL (a .slm file or a shipped name; default from the settings) takes on this board.

    Idle, warm-up, windows of golden prompts one after the other, idle again. Stop the agent before, and let the board
    do nothing else: its whole draw is counted.
    """
    if files is not None:
        print_comparison(*(_read(path) for path in files), as_json=as_json)
        return
    path = wiring.package_path(model or settings.config.models[0], None if model else settings.directory)
    config = settings.config
    loaded = wiring.open_model(
        str(path), runtime=config.runtime, threads=threads or config.threads or settings.board.threads
    )
    run = _Runner(settings, loaded, window_s).run(repeats)
    result = _result(settings, loaded, BenchProtocol(window_s=window_s, repeats=repeats), run)
    if out is not None:
        _write(out, result)
    if as_json:
        print_json(result)
    else:
        print_result(result)


@dataclass(frozen=True)
class _Window:
    """What was done in a window."""

    phase: Phase
    prompts: int
    prompt_tokens: int
    completion_tokens: int
    vitals: Vitals
    throttled: bool


@dataclass(frozen=True)
class _Run:
    """All that was done and seen.

    Attributes:
        before: idle, likewise `after`.
        busy_cores: cores that were busy in `before`.
        golden: golden prompts that were asked, and answered rightly.
        meters: names of those that were used.
    """

    before: Phase
    after: Phase
    busy_cores: float
    golden: tuple[int, int]
    windows: tuple[_Window, ...]
    trace: Trace
    facts: MeterFacts
    meters: frozenset[str]


class _Runner:
    """Goes through the protocol with one model."""

    def __init__(self, settings: Settings, model: LoadedModel, window_s: float) -> None:
        """Take the model with its golden prompts.

        Raises:
            UsageError: it has none.
        """
        self._settings, self._model, self._window_s = settings, model, window_s
        self._cases = _golden_cases(model.installed)
        if not self._cases:
            raise UsageError(f"{model.name} holds no golden prompts to run")
        self._meters: set[str] = set()

    def run(self, repeats: int) -> _Run:
        """Do all of it."""
        trace = Trace()
        cpu = CpuClock(self._settings.config.power.root)
        with _short_turns(), monitored(self._settings, on_interval=trace.add) as monitor:
            busy = BusyCores(cpu.read())
            before = self._rest("idle")
            busy_cores = busy.advance(cpu.read())
            golden = self._warm_up()
            windows = tuple(self._window(monitor, number + 1, repeats) for number in range(repeats))
            after = self._rest("idle again")
            facts = monitor.facts
        cpu.close()
        assert facts is not None  # noqa: S101  (the monitor has sampled)
        return _Run(before, after, busy_cores, golden, windows, trace, facts, frozenset(self._meters))

    def _rest(self, what: str) -> Phase:
        click.echo(f"{what}, {time_text(self._window_s)}", err=True)
        start_s = time.monotonic()
        time.sleep(self._window_s)
        return Phase(start_s, time.monotonic())

    def _warm_up(self) -> tuple[int, int]:
        """Answer golden prompts until the board is warm; those asked, and those answered rightly."""
        click.echo(f"warm-up, {time_text(self._window_s)}", err=True)
        until_s = time.monotonic() + self._window_s
        asked = right = 0
        for number, case in enumerate(itertools.cycle(self._cases)):
            if number and time.monotonic() >= until_s:
                break
            answer = self._model.answer(case.prompt, Options())
            if number < len(self._cases):
                asked += 1
                right += _is_right(case, answer)
        return asked, right

    def _window(self, monitor: PowerMonitor, number: int, repeats: int) -> _Window:
        click.echo(f"window {number} of {repeats}, {time_text(self._window_s)}", err=True)
        prompts = prompt_tokens = completion_tokens = 0
        throttled = False
        start_s = end_s = time.monotonic()
        for case in itertools.cycle(self._cases):
            generation = self._model.answer(case.prompt, Options()).generation
            prompts += 1
            prompt_tokens += generation.prompt_tokens
            completion_tokens += len(generation.token_ids)
            end_s = time.monotonic()
            flags = monitor.vitals.throttling or Throttling()
            throttled = throttled or flags.throttled or flags.frequency_capped or flags.soft_temperature_limit
            if end_s - start_s >= self._window_s:
                break
        if monitor.facts is not None:
            self._meters.add(monitor.facts.name)
        phase = Phase(start_s, end_s)
        return _Window(phase, prompts, prompt_tokens, completion_tokens, monitor.vitals, throttled)


def _golden_cases(installed: InstalledPackage) -> list[GoldenCase]:
    name = installed.manifest.golden
    if name is None:
        return []
    with installed.file(name).open("rb") as file:
        return list(parse_golden(file.read(MAX_GOLDEN_BYTES), installed.directory, name))


def _is_right(case: GoldenCase, answer: Answer) -> bool:
    return answer.generation.text == case.text if case.text is not None else answer.data == case.json_answer


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let the sampling thread have the interpreter in time, as the agent does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _result(settings: Settings, model: LoadedModel, protocol: BenchProtocol, run: _Run) -> BenchResult:
    trace, facts = run.trace, run.facts
    before_w, after_w = (
        trace.energy_j(phase.start_s, phase.end_s) / phase.seconds for phase in (run.before, run.after)
    )
    windows = tuple(_measured(window, trace, (before_w + after_w) / 2) for window in run.windows)
    meter = BenchMeter(
        name=facts.name,
        meter_class=trace.meter_class,
        period_s=facts.period_s,
        error_share=facts.error_share,
        error_w=facts.error_w,
        source=facts.source[:512],
    )
    return BenchResult(
        made_at=datetime.now(UTC).replace(microsecond=0),
        system=_system(settings, model),
        model=_model(model),
        meter=meter,
        protocol=protocol,
        idle_before_w=before_w,
        idle_after_w=after_w,
        golden_asked=run.golden[0],
        golden_right=run.golden[1],
        windows=windows,
        figures=figures(windows),
        notes=notes(
            protocol=protocol,
            idle_w=(before_w, after_w),
            busy_cores=run.busy_cores,
            windows=windows,
            meter=meter.meter_class,
            golden=run.golden,
            meters=run.meters,
        ),
    )


def _measured(window: _Window, trace: Trace, idle_w: float) -> BenchWindow:
    phase = window.phase
    energy_j = trace.energy_j(phase.start_s, phase.end_s)
    return BenchWindow(
        seconds=phase.seconds,
        prompts=window.prompts,
        prompt_tokens=window.prompt_tokens,
        completion_tokens=window.completion_tokens,
        energy_j=energy_j,
        net_j=energy_j - idle_w * phase.seconds,
        temperature_c=window.vitals.temperature_c,
        frequency_mhz=window.vitals.frequency_mhz,
        throttled=window.throttled,
    )


def _system(settings: Settings, model: LoadedModel) -> BenchSystem:
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        distribution = platform.system()
    return BenchSystem(
        board=settings.board.name,
        title=settings.board.title,
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        os=distribution,
        python=platform.python_version(),
        edgeslm=edgeslm.__version__,
        runtime=model.runtime_name,
        numpy=np.__version__,
    )


def _model(model: LoadedModel) -> BenchModel:
    return BenchModel(
        name=model.name,
        sha256=model.installed.sha256,
        graph=model.graph_file,
        quantization=model.graph.quantization,
        threads=model.threads,
    )


# --- files --------------------------------------------------------------------------------------------------


def _read(path: Path) -> BenchResult:
    try:
        with path.open("rb") as file:
            return BenchResult.model_validate_json(file.read(_MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except ValidationError as error:
        raise ConfigError(f"{path} is no result of power bench: {describe(error)}", path=str(path)) from error


def _write(path: Path, result: BenchResult) -> None:
    try:
        path.write_text(result.model_dump_json(indent=2, exclude_none=True) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", path=str(path)) from error
    click.echo(f"wrote {path}", err=True)
