"""Figures of a fleet as files: CSV, JSON, Parquet (extra ``parquet``), PNG and SVG (extra ``charts``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeslm.errors import UsageError
from edgeslm.files import replace_file

if TYPE_CHECKING:
    from edgeslm.fleet.metrics.figures import Figure
    from edgeslm.fleet.metrics.report import FiguresReport

_KINDS: Final = (".png", ".svg", ".csv", ".json", ".parquet")


def write_file(path: Path, found: FiguresReport, figures: Sequence[Figure]) -> None:
    """Write a report into `path`, whose ending says how; a file that is there is replaced.

    Raises:
        UsageError: the ending is none of those that are known, a library is missing, or the disk refuses.
    """
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise UsageError(f"'{path}' ends in none of {', '.join(_KINDS)}")
    try:
        if kind == ".csv":
            replace_file(path, csv_text(found, figures).encode(), mode=0o644)
        elif kind == ".json":
            replace_file(path, f"{found.model_dump_json()}\n".encode(), mode=0o644)
        elif kind == ".parquet":
            replace_file(path, _parquet(found, figures), mode=0o644)
        else:
            replace_file(path, _drawing(kind[1:])(found, figures), mode=0o644)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def columns_of(found: FiguresReport, figures: Sequence[Figure]) -> list[str]:
    """Names of the columns: the group, the time where there are steps, devices, and each figure with its unit."""
    names = ["from"] * (found.step_s is not None) + [found.by, "devices"]
    return [*names, *(_name(figure) for figure in figures)]


def _name(figure: Figure) -> str:
    unit = {"W": "_w", "J": "_j", "C": "_c", "ms": "_ms", "share": "_share", "1/s": "_per_s"}.get(
        figure.unit, ""
    )
    if unit == "_j" and figure.name.startswith("j-"):
        return figure.name.replace("-", "_per_")
    return figure.name.replace("-", "_") + ("" if figure.name == "tps" else unit)


def csv_text(found: FiguresReport, figures: Sequence[Figure]) -> str:
    """A report as CSV; times are UTC, what was not reported is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns_of(found, figures))
    for row in found.rows:
        start = [] if found.step_s is None else [row.start.isoformat() if row.start is not None else ""]
        values = [row.figures.get(figure.name) for figure in figures]
        writer.writerow([*start, _cell(row.group), row.devices, *values])
    return text.getvalue()


def _cell(text: str) -> str:
    """`text` so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@"} else text


def _parquet(found: FiguresReport, figures: Sequence[Figure]) -> bytes:
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(
            "pyarrow is not installed", hint="Parquet needs: pip install 'edgeslm[parquet]'"
        ) from error
    fields = {name: pa.float64() for name in columns_of(found, figures)}
    fields[found.by], fields["devices"] = pa.string(), pa.int64()
    columns: dict[str, list[object]] = {
        found.by: [row.group for row in found.rows],
        "devices": [row.devices for row in found.rows],
        **{_name(figure): [row.figures.get(figure.name) for row in found.rows] for figure in figures},
    }
    if found.step_s is not None:
        fields["from"] = pa.timestamp("ms", tz="UTC")
        columns["from"] = [row.start for row in found.rows]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(list(fields.items()))), sink)
    return sink.getvalue()


def _drawing(kind: str) -> Callable[[FiguresReport, Sequence[Figure]], bytes]:
    try:
        from edgeslm.cli.fleet_metrics_chart import draw  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise UsageError(
            "matplotlib is not installed", hint="Charts need: pip install 'edgeslm[charts]'"
        ) from error
    return lambda found, figures: draw(found, figures, kind)
