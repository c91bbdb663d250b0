"""Labels for boards: what stands on them can be read by people and by a telephone, and is no secret. Pure.

The code holds a link, ``edgeslm://FLEET/DEVICE?claim=CLAIM``: names alone. The secret of a claim is on the card.

Source: ISO/IEC 18004 (QR code); four modules of quiet zone around (clause 9.1).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import qrcode

Paper = Literal["a4", "letter"]
_PAPERS_MM: dict[Paper, tuple[float, float]] = {"a4": (210, 297), "letter": (215.9, 279.4)}
_MARGIN_MM = 10.0
_QUIET_MODULES = 4
_FEWEST_MM = (40.0, 20.0)
_FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_CHAR_EM = 0.61
"""Width of a letter of those fonts."""


@dataclass(frozen=True)
class Label:
    """What is on one.

    Attributes:
        claim: name of the claim with which it joins, or ``None``.
        note: a line more, such as the board and the day.
    """

    device: str
    fleet: str
    claim: str | None = None
    note: str = ""

    @property
    def link(self) -> str:
        """What the code holds."""
        return f"edgeslm://{self.fleet}/{self.device}" + (f"?claim={self.claim}" if self.claim else "")


@dataclass(frozen=True)
class Sheet:
    """How labels lie on paper.

    Attributes:
        width_mm: of one label.
        height_mm: of one label.
    """

    paper: Paper = "a4"
    width_mm: float = 63.0
    height_mm: float = 29.0

    @property
    def columns(self) -> int:
        """Labels side by side."""
        return max(1, int((_PAPERS_MM[self.paper][0] - 2 * _MARGIN_MM) // self.width_mm))

    @property
    def rows(self) -> int:
        """Labels above each other."""
        return max(1, int((_PAPERS_MM[self.paper][1] - 2 * _MARGIN_MM) // self.height_mm))


def label_page(labels: Sequence[Label], sheet: Sheet) -> str:
    """A page of HTML that prints as sheets of labels, at their true size; nothing is loaded from anywhere."""
    per_page = sheet.columns * sheet.rows
    pages = [labels[begin : begin + per_page] for begin in range(0, len(labels), per_page)]
    width, height = _PAPERS_MM[sheet.paper]
    drawn = "\n".join(sheet_svg(page, sheet) for page in pages)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Labels</title>
<style>
@page {{ size: {width}mm {height}mm; margin: 0 }}
body {{ margin: 0 }}
svg {{ display: block; width: {width}mm; height: {height}mm; break-after: page }}
svg:last-child {{ break-after: auto }}
</style>
</head>
<body>
{drawn}
</body>
</html>
"""


def sheet_svg(labels: Sequence[Label], sheet: Sheet) -> str:
    """One sheet; lengths are millimetres."""
    width, height = _PAPERS_MM[sheet.paper]
    parts = []
    for index, label in enumerate(labels):
        x = _MARGIN_MM + index % sheet.columns * sheet.width_mm
        y = _MARGIN_MM + index // sheet.columns * sheet.height_mm
        parts.append(f'<g transform="translate({x:g} {y:g})">{_label(label, sheet)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}mm" height="{height:g}mm">'
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>\n' + "\n".join(parts) + "</svg>"
    )


def label_text(label: Label) -> str:
    """A label for the terminal: the code in half blocks, dark on light, and the words below."""
    code = _code(label.link)
    out = io.StringIO()
    code.print_ascii(out=out, invert=True)
    words = [label.device, f"fleet {label.fleet}"]
    if label.claim:
        words.append(f"claim {label.claim}")
    if label.note:
        words.append(label.note)
    return out.getvalue().rstrip("\n") + "\n    " + "  ".join(words) + "\n"


def _label(label: Label, sheet: Sheet) -> str:
    """One label at the origin: a frame to cut along, the code to the left, words beside it."""
    width, height = sheet.width_mm, sheet.height_mm
    side = min(height, width / 2)
    text_x, room = side + 0.5, width - side - 2
    lines = [(label.device, 4.2, "bold"), (f"fleet {label.fleet}", 2.6, "normal")]
    if label.claim:
        lines.append((f"claim {label.claim}", 2.6, "normal"))
    if label.note:
        lines.append((label.note, 2.2, "normal"))
    words, y = [], height / 2 - sum(size for _, size, _ in lines) * 0.65
    for text, size, weight in lines:
        for piece, piece_size in _fit(text, size, room):
            y += piece_size * 1.3
            words.append(
                f'<text x="{text_x:g}" y="{y:.2f}" font-family="{_FONT}" font-size="{piece_size:.2f}" '
                f'font-weight="{weight}">{escape(piece)}</text>'
            )
    frame = f'<rect width="{width:g}" height="{height:g}" fill="none" stroke="#bbb" stroke-width="0.1"/>'
    return frame + _code_path(label.link, (height - side) / 2, side) + "".join(words)


def _fit(text: str, size: float, room: float) -> list[tuple[str, float]]:
    """`text` in lines no longer than `room`: smaller down to two thirds, then broken."""
    wanted = room / (max(1, len(text)) * _CHAR_EM)
    if wanted >= size * 2 / 3:
        return [(text, min(size, wanted))]
    smaller = size * 2 / 3
    chars = max(1, int(room / (smaller * _CHAR_EM)))
    return [(text[begin : begin + chars], smaller) for begin in range(0, len(text), chars)]


def _code_path(text: str, y_mm: float, side_mm: float) -> str:
    matrix = _code(text).get_matrix()
    module = side_mm / len(matrix)
    runs = []
    for row, cells in enumerate(matrix):
        column = 0
        while column < len(cells):
            length = 0
            while column + length < len(cells) and cells[column + length]:
                length += 1
            if length:
                runs.append(f"M{column} {row}h{length}v1h-{length}z")
            column += length or 1
    return f'<path transform="translate(0 {y_mm:g}) scale({module:.5f})" d="{"".join(runs)}"/>'


def _code(text: str) -> qrcode.QRCode[Any]:
    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_M, border=_QUIET_MODULES)
    code.add_data(text)
    code.make(fit=True)
    return code
