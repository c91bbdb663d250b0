"""Labels are read by a decoder that is not ours, from the very shapes that are printed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.flash.disks.labels import Label, Sheet, label_page, label_text, sheet_svg

_PIXELS_MM = 8
_GROUP = re.compile(r'<g transform="translate\((\S+) (\S+)\)">(.*?)</g>', re.DOTALL)
_CODE = re.compile(r'<path transform="translate\(0 (\S+)\) scale\((\S+)\)" d="([^"]+)"/>')
_MODULES = re.compile(r"M(\d+) (\d+)h(\d+)v1h-\3z")
identifiers = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
claims = st.from_regex(r"[0-9a-hjkmnp-tv-z]{6}", fullmatch=True)


def printed(svg: str) -> np.ndarray:
    """A sheet as a printer sets its codes, a pixel an eighth of a millimetre: (height, width) uint8."""
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert box is not None
    paper = np.full((round(float(box[2]) * _PIXELS_MM), round(float(box[1]) * _PIXELS_MM)), 255, np.uint8)
    for x, y, inside in _GROUP.findall(svg):
        for down, scale, path in _CODE.findall(inside):
            left, top, side = float(x), float(y) + float(down), float(scale)
            runs = _MODULES.findall(path)
            assert "".join(f"M{a} {b}h{c}v1h-{c}z" for a, b, c in runs) == path
            for column, row, length in runs:
                x0, x1 = (
                    round((left + side * at) * _PIXELS_MM) for at in (int(column), int(column) + int(length))
                )
                y0, y1 = (round((top + side * at) * _PIXELS_MM) for at in (int(row), int(row) + 1))
                paper[y0:y1, x0:x1] = 0
    return paper


def decoded(svg: str) -> list[str]:
    return sorted(found.text for found in zxingcpp.read_barcodes(printed(svg)))


def test_every_code_on_a_full_sheet_holds_its_link() -> None:
    sheet = Sheet()
    labels = [Label(f"porch-{n}", "garden", "k7m2qx", "pi-4b") for n in range(sheet.columns * sheet.rows)]
    assert decoded(sheet_svg(labels, sheet)) == sorted(label.link for label in labels)


def test_the_link_holds_names_and_no_secret() -> None:
    assert Label("porch-1", "garden", "k7m2qx").link == "edgeslm://garden/porch-1?claim=k7m2qx"
    assert Label("porch-1", "garden").link == "edgeslm://garden/porch-1"


@settings(max_examples=25)
@given(device=identifiers, fleet=identifiers, claim=st.none() | claims)
def test_a_code_of_any_names_is_read_back_as_its_link(device: str, fleet: str, claim: str | None) -> None:
    label = Label(device, fleet, claim)
    assert decoded(sheet_svg([label], Sheet())) == [label.link]


@pytest.mark.parametrize("sheet", [Sheet("letter"), Sheet("a4", 40.0, 20.0), Sheet("a4", 100.0, 60.0)])
def test_labels_stay_on_the_paper_and_apart(sheet: Sheet) -> None:
    labels = [Label(f"d-{n}", "f") for n in range(sheet.columns * sheet.rows)]
    svg = sheet_svg(labels, sheet)
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert box is not None
    places = {(float(x), float(y)) for x, y, _ in _GROUP.findall(svg)}
    assert len(places) == len(labels)
    assert max(x for x, _ in places) + sheet.width_mm <= float(box[1])
    assert max(y for _, y in places) + sheet.height_mm <= float(box[2])
    assert decoded(svg) == sorted(label.link for label in labels)


def test_more_labels_than_a_sheet_holds_take_more_sheets_and_nothing_is_loaded_from_anywhere() -> None:
    sheet = Sheet()
    page = label_page([Label(f"d-{n}", "f") for n in range(sheet.columns * sheet.rows + 1)], sheet)
    assert page.count("<svg ") == 2
    loaded: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            loaded.extend((name, value) for name, value in attrs if name in {"src", "href", "xlink:href"})

    Reader().feed(page)
    assert loaded == []
    assert "url(" not in page


def test_what_stands_on_a_label_cannot_become_part_of_the_page() -> None:
    page = label_page([Label("porch", "garden", note='<script>alert("1")</script>')], Sheet())
    assert "<script" not in page
    assert "&lt;scr" in page


def test_a_label_for_the_terminal_holds_the_same_code() -> None:
    label = Label("porch-1", "garden", "k7m2qx", "pi-4b")
    text = label_text(label)
    assert "porch-1" in text
    assert "claim k7m2qx" in text
    blocks = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), "\N{NO-BREAK SPACE}": (0, 0), " ": (0, 0)}
    lines = [line for line in text.splitlines() if line and set(line) <= set(blocks)]
    rows = [[blocks[char][half] for char in line] for line in lines for half in (0, 1)]
    width = max(map(len, rows))
    light = np.array([row + [1] * (width - len(row)) for row in rows], np.uint8) * 255
    picture = np.kron(np.pad(light, 4, constant_values=255), np.ones((6, 6), np.uint8))
    assert [found.text for found in zxingcpp.read_barcodes(picture)] == [label.link]
