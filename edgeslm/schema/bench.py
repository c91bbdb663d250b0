"""The result file of ``edgeslm power bench``: what a model takes on a board, with all that is needed to judge it.

Made to be shared: it names board, system, versions, model and meter, and neither device nor user.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from edgeslm.schema.base import FileModel, Identifier, Sha256
from edgeslm.schema.message import MeterClass

Text = Annotated[str, StringConstraints(max_length=512)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class BenchSystem(FileModel):
    """What it ran on.

    Attributes:
        machine: architecture, as ``uname -m`` has it.
        cores: cores that this process may use.
        os: name and version of the distribution.
        runtime: TFLite runtime with version.
    """

    board: Identifier
    title: Text
    machine: Text
    cores: Annotated[int, Field(ge=1)]
    kernel: Text
    os: Text
    python: Text
    edgeslm: Text
    runtime: Text
    numpy: Text


class BenchModel(FileModel):
    """What was run.

    Attributes:
        name: name and version.
        sha256: digest of the package.
        threads: inference threads.
    """

    name: Text
    sha256: Sha256
    graph: Text
    quantization: Text
    threads: Annotated[int, Field(ge=1)]


class BenchMeter(FileModel):
    """How the energy is known; see ``power.port.MeterFacts``.

    Attributes:
        meter_class: the weakest class that a tenth of the energy or more rests on.
    """

    name: Text
    meter_class: MeterClass
    period_s: Amount
    error_share: Amount
    error_w: Amount
    source: Text


class BenchProtocol(FileModel):
    """How it was run: idle, warm-up, `repeats` windows, idle again.

    Attributes:
        window_s: least seconds of each of them.
    """

    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    repeats: Annotated[int, Field(ge=1, le=1000)]


class BenchWindow(FileModel):
    """One window of prompts, one after the other.

    Attributes:
        completion_tokens: generated tokens.
        energy_j: joules of the whole board.
        net_j: joules above the idle board; may be below zero where the meter is coarse.
        temperature_c: of the processor at its end.
        frequency_mhz: likewise.
        throttled: the firmware slowed the board down in it.
    """

    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    prompts: Annotated[int, Field(ge=1)]
    prompt_tokens: Count
    completion_tokens: Count
    energy_j: Amount
    net_j: Annotated[float, Field(allow_inf_nan=False)]
    temperature_c: float | None = None
    frequency_mhz: float | None = None
    throttled: bool = False


class Spread(FileModel):
    """Median, least and most over the windows."""

    median: Annotated[float, Field(allow_inf_nan=False)]
    least: Annotated[float, Field(allow_inf_nan=False)]
    most: Annotated[float, Field(allow_inf_nan=False)]


class BenchFigures(FileModel):
    """The result.

    Attributes:
        tokens_per_s: generated tokens a second of the window, reading of prompts included.
        prompts_per_s: likewise.
        power_w: mean draw of the board.
        j_per_token: joules of the board a generated token; ``net_`` is above idle, likewise for prompts.
    """

    tokens_per_s: Spread
    prompts_per_s: Spread
    power_w: Spread
    j_per_token: Spread
    net_j_per_token: Spread
    j_per_prompt: Spread
    net_j_per_prompt: Spread


class BenchResult(FileModel):
    """One run.

    Attributes:
        idle_before_w: mean draw of the idle board before the windows; the baseline is the mean of both.
        idle_after_w: mean draw of the idle board after them.
        golden_asked: golden prompts that were answered in the warm-up.
        golden_right: how many of them rightly.
        notes: what a reader should know before believing the figures.
    """

    v: Literal[1] = 1
    made_at: AwareDatetime
    system: BenchSystem
    model: BenchModel
    meter: BenchMeter
    protocol: BenchProtocol
    idle_before_w: Amount
    idle_after_w: Amount
    golden_asked: Count
    golden_right: Count
    windows: Annotated[tuple[BenchWindow, ...], Field(min_length=1, max_length=1000)]
    figures: BenchFigures
    notes: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
