"""``edgeslm power calibrate``: fits a meter of this board to one that is known to be right."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import click

from edgeslm.cli.output import print_json
from edgeslm.cli.power_common import Settings, open_meters, power_command
from edgeslm.cli.power_words import error_text, power_text, print_table, time_text
from edgeslm.errors import CalibrationError, UsageError
from edgeslm.power.actuators import FrequencyCap
from edgeslm.power.calibrating import (
    PAIRS_PER_VISIT,
    Bench,
    Load,
    MeanOf,
    Pair,
    PredictorsOf,
    Residual,
    SaidT,
    Source,
    loads,
    record,
    residuals,
    visits,
    with_entry,
)
from edgeslm.power.calibration import (
    Observation,
    Refusal,
    fit_line,
    fit_model,
    line_calibration,
    model_calibration,
    read_calibration,
    write_calibration,
)
from edgeslm.power.meters import pmic, rapl
from edgeslm.power.meters.discovery import Discovery
from edgeslm.power.meters.linear import Correction
from edgeslm.power.meters.model import MODEL_FIGURES, Observer, predict
from edgeslm.power.meters.pmic import PmicMeter
from edgeslm.power.meters.rapl import RaplMeter
from edgeslm.power.port import Meter, MeterFacts
from edgeslm.power.spinning import Spinners
from edgeslm.schema.calibration import LineCalibration, ModelCalibration

MeterKind = Literal["model", "pmic", "rapl"]

CAP_NAME: Final = "frequency.json"
"""Where the agent, too, keeps what it changed of the frequency."""

_SETTLE_S: Final = 5.0
_WINDOW_S: Final = 2.0
_TYPING_S: Final = 6.0
_WATTMETER: Final = MeterFacts(
    name="wattmeter",
    meter_class="measured",
    period_s=1.0,
    error_share=0.02,
    error_w=0.05,
    averages=True,
    source="read and typed by a person; plug-in wattmeters state about 2 %, and show tenths of a watt",
)
_AS_IT_IS: Final = Correction(scale=1.0, offset_w=0.0, error_share=0.0, error_w=0.0, source="uncorrected")


class BoardBench:
    """``Bench``: this board, kept busy by processes that spin."""

    def __init__(self, cap: FrequencyCap) -> None:
        self._cap = cap
        self._spinners = Spinners()
        self.cores = len(os.sched_getaffinity(0))
        self.frequencies_mhz: tuple[int, ...] = ()
        if cap.permitted and cap.range_mhz is not None:
            least, most = cap.range_mhz
            self.frequencies_mhz = (round((least + most) / 2), round(least))

    def clock(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def hold(self, load: Load) -> None:
        """Spin on so many cores, at that frequency."""
        self._spinners.spin(load.cores)
        if load.frequency_mhz is not None:
            self._cap.hold(load.frequency_mhz)
        elif self._cap.holds:
            self._cap.lift()

    def close(self) -> None:
        """Let the board rest, its frequency as it was."""
        self._spinners.close()
        self._cap.close()


class _Typed:
    """``Source`` of what a person reads off a wattmeter."""

    def begin(self) -> None:
        """Nothing to do."""

    def look(self) -> None:
        """Nothing to do."""

    def take(self) -> float:
        """Ask."""
        value: float = click.prompt("    watts that it shows", type=click.FloatRange(0, 10_000), err=True)
        return value


@dataclass(frozen=True)
class _Fit:
    """A calibration with how well it does.

    Attributes:
        figures: name, value before and value after, for people.
    """

    entry: LineCalibration | ModelCalibration
    residuals: tuple[Residual, ...]
    figures: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class _Session:
    """One calibration under way.

    Attributes:
        against: the instrument's own words about itself.
        instrument: what it says.
    """

    settings: Settings
    bench: Bench
    against: MeterFacts
    instrument: Source[float]
    manual: bool

    def pairs(
        self, subject: Source[SaidT], period_s: float, frequencies_mhz: Sequence[int] = ()
    ) -> list[Pair[SaidT]]:
        """Go through all loads; `period_s` is the subject's."""
        per_visit = 1 if self.manual else PAIRS_PER_VISIT
        slowest_s = max(period_s, self.against.period_s)
        settle_s, window_s = max(_SETTLE_S, 1.5 * slowest_s), max(_WINDOW_S, 1.2 * slowest_s)
        route = visits(loads(self.bench.cores, frequencies_mhz), per_visit)
        visit_s = settle_s + per_visit * (window_s + (_TYPING_S if self.manual else 0.0))
        click.echo(f"{len(route)} loads, about {time_text(len(route) * visit_s)}; Ctrl-C ends it", err=True)

        def arrived(number: int, load: Load) -> None:
            click.echo(f"{number:3d} of {len(route)}: {load}", err=True)

        return list(
            record(
                self.bench,
                route,
                subject,
                self.instrument,
                pairs_per_visit=per_visit,
                settle_s=settle_s,
                window_s=window_s,
                arrived=arrived,
            )
        )

    def fit_line(self, kind: Literal["pmic", "rapl"], meter: Meter, before: Correction) -> _Fit:
        """Fit the line of a meter that sees only a part; `before` is what it is corrected by otherwise."""
        pairs = self.pairs(MeanOf(meter), meter.facts.period_s)
        true_w = [pair.true_w for pair in pairs]
        line = fit_line([pair.said for pair in pairs], true_w)
        if isinstance(line, Refusal):
            raise _refused(line)
        return _Fit(
            line_calibration(kind, line, true_w, self.against, datetime.now(UTC)),
            residuals(pairs, lambda said_w: line.scale * said_w + line.offset_w),
            (
                ("factor", f"{before.scale:.4f}", f"{line.scale:.4f}"),
                ("offset", power_text(before.offset_w), power_text(line.offset_w)),
            ),
        )

    def fit_model(self) -> _Fit:
        """Fit the figures of the board's power model."""
        table = self.settings.board.power
        observer = Observer(self.settings.config.power.root, self.bench.clock)
        try:
            pairs = self.pairs(PredictorsOf(observer), 0.0, self.bench.frequencies_mhz)
        finally:
            observer.close()
        fit = fit_model(table, [Observation(pair.said, pair.true_w) for pair in pairs])
        if isinstance(fit, Refusal):
            raise _refused(fit)
        return _Fit(
            model_calibration(fit, [pair.true_w for pair in pairs], self.against, datetime.now(UTC)),
            residuals(pairs, lambda predictors: predict(fit.table, predictors)),
            tuple(
                (name, f"{getattr(table, name):.4g}", f"{getattr(fit.table, name):.4g}")
                for name in MODEL_FIGURES
            ),
        )

    def fit(self, kind: MeterKind) -> _Fit:
        """Fit the meter of that kind."""
        if kind == "model":
            return self.fit_model()
        power = self.settings.config.power
        if kind == "pmic":
            return self.fit_line(kind, PmicMeter(power.vcgencmd, _AS_IT_IS, self.bench.clock), pmic.PUBLISHED)
        zones = rapl.find_zones(power.root)
        before = rapl.default_correction(zones, self.settings.board.power.idle_w)
        meter = RaplMeter(zones, _AS_IT_IS, clock=self.bench.clock)
        try:
            return self.fit_line(kind, meter, before)
        finally:
            meter.close()


@click.command()
@click.option(
    "--against",
    metavar="METER",
    help="The meter that is right, as `power meters` names it: plug, hwmon, ina226 ...",
)
@click.option("--manual", is_flag=True, help="Type what a wattmeter shows, load by load.")
@click.option(
    "--meter",
    "kind",
    type=click.Choice(["model", "pmic", "rapl"]),
    help="The meter to calibrate; default is pmic or rapl where there is one, else model.",
)
@click.option("--yes", "-y", is_flag=True, help="Write the file without asking.")
@power_command
def calibrate(
    settings: Settings, against: str | None, manual: bool, kind: MeterKind | None, yes: bool, as_json: bool
) -> None:
    """Fit a meter of this board to one that is known to be right, over loads from idle to all cores busy.

    The board is kept busy for some minutes; let it do nothing else meanwhile. What is fitted is shown, and written to
    the calibration file in the state directory once you agree. The agent uses it from its next start on.
    """
    if (against is None) == (not manual):
        raise UsageError("say what is right: --against METER, or --manual for a wattmeter that you read")
    file = settings.config.state_dir / settings.config.power.calibration_file
    with open_meters(settings) as discovery:
        names = {finding.name for finding in discovery.findings if finding.facts is not None}
        chosen = kind or next(
            found for found in ("pmic", "rapl", "model") if found in names and found != against
        )
        if chosen not in names:
            raise UsageError(f"this board has no meter '{chosen}'", hint="edgeslm power meters lists them")
        instrument = None if against is None else _instrument(discovery, against, chosen)
        with _bench(settings) as bench:
            session = _Session(
                settings,
                bench,
                _WATTMETER if instrument is None else instrument.facts,
                _Typed() if instrument is None else MeanOf(instrument),
                manual,
            )
            fit = session.fit(chosen)
    if not as_json:
        _print(fit, chosen, session.against)
    if not yes and not click.confirm(f"Write this to {file}?", err=True):
        raise UsageError("nothing was written")
    write_calibration(file, with_entry(read_calibration(file), settings.board.name, fit.entry))
    if as_json:
        print_json(_report(fit, chosen, file))
    else:
        click.echo(f"wrote {file}; the agent uses it from its next start on", err=True)


def _instrument(discovery: Discovery, against: str, chosen: str) -> Meter:
    """The meter that `against` names.

    Raises:
        UsageError: none or several are called so, or it knows no better than what is calibrated.
    """
    meters = {meter.facts.name: meter for meter in discovery.meters}
    names = [against] if against in meters else [name for name in meters if against in name]
    if len(names) != 1:
        what = "several meters are" if names else "no meter is"
        raise UsageError(
            f"{what} called '{against}'", hint=f"There are: {', '.join(names or meters) or 'none'}"
        )
    if names[0] == chosen:
        raise UsageError(
            f"'{chosen}' cannot be calibrated against itself", hint="Choose another with --meter"
        )
    found = meters[names[0]]
    if found.facts.meter_class == "estimated":
        raise UsageError(f"'{names[0]}' only estimates: nothing can be calibrated against it")
    return found


@contextmanager
def _bench(settings: Settings) -> Iterator[Bench]:
    """This board; or what the caller gave in its place."""
    given = click.get_current_context().obj
    if isinstance(given, Bench):
        yield given
        return
    cap = FrequencyCap(settings.config.state_dir / CAP_NAME, settings.config.power.root)
    if cap.why_not is not None:
        click.echo(f"frequencies are left alone: {cap.why_not}", err=True)
    bench = BoardBench(cap)
    try:
        yield bench
    finally:
        bench.close()


def _print(fit: _Fit, chosen: str, against: MeterFacts) -> None:
    entry = fit.entry
    click.echo(
        f"{chosen} against {against.name} ({against.meter_class}, {error_text(against.error_share, against.error_w)}): "
        f"{entry.pairs} pairs from {power_text(entry.least_w)} to {power_text(entry.most_w)}\n"
    )
    print_table(("figure", ">before", ">fitted"), fit.figures)
    click.echo()
    print_table(("load", ">instrument", ">fitted", ">apart"), [_residual_row(one) for one in fit.residuals])
    click.echo(f"\nerror of the result: {error_text(entry.error_share, entry.error_w)}")


def _residual_row(one: Residual) -> Sequence[str]:
    return (
        str(one.load),
        power_text(one.true_w),
        power_text(one.fitted_w),
        f"{one.fitted_w - one.true_w:+.3f} W",
    )


def _report(fit: _Fit, chosen: str, file: Path) -> dict[str, object]:
    return {
        "meter": chosen,
        "file": str(file),
        "calibration": fit.entry.model_dump(mode="json"),
        "residuals": [
            {
                "cores": one.load.cores,
                "frequency_mhz": one.load.frequency_mhz,
                "true_w": round(one.true_w, 4),
                "fitted_w": round(one.fitted_w, 4),
            }
            for one in fit.residuals
        ],
    }


def _refused(refusal: Refusal) -> CalibrationError:
    return CalibrationError(refusal.reason, found=refusal.found, needed=refusal.needed, unit=refusal.unit)
