"""Inventories as JSON and as CSV: bytes to an inventory, and back. Pure.

What always holds: what one writes the other reads back the same, groups made by a query aside, for which CSV has no
column; a cell that a spreadsheet would take for a formula is written with an apostrophe before it, which reading takes
away again.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from pydantic import ValidationError

from edgeslm import codec
from edgeslm.errors import InventoryError
from edgeslm.schema.inventory import MAX_INVENTORY_BYTES, Inventory

COLUMNS = ("name", "tags", "note", "groups", "board", "serial", "profile", "standing")
_LISTS = {"tags", "groups"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def to_json(inventory: Inventory) -> str:
    """As JSON, a device a line apart from the braces."""
    return (
        json.dumps(inventory.model_dump(mode="json", exclude_none=True), ensure_ascii=False, indent=1) + "\n"
    )


def to_csv(inventory: Inventory) -> str:
    """As a table with a line for each device."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in inventory.devices:
        record = one.model_dump(mode="json")
        writer.writerow(_cell(record[column]) for column in COLUMNS)
    return out.getvalue()


def read(data: bytes, path: str) -> Inventory:
    """Read an inventory, as CSV where the file is called so, else as JSON.

    Raises:
        InventoryError: it is none; with the line or key, and what was expected there.
    """
    if len(data) > MAX_INVENTORY_BYTES:
        raise InventoryError(f"{path} has more than {MAX_INVENTORY_BYTES} bytes", path=path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InventoryError(f"{path} is no UTF-8: byte {error.start}", path=path) from error
    document = json.dumps(_rows(text, path)) if path.lower().endswith(".csv") else text
    try:
        return Inventory.model_validate_json(document)
    except ValidationError as error:
        is_json = error.errors()[0]["type"] != "json_invalid"
        hint = None if is_json else "A table has to be called .csv"
        raise InventoryError(f"{path}: {codec.describe(error)}", path=path, hint=hint) from error


def _rows(text: str, path: str) -> dict[str, Any]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    devices = []
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        if "name" not in header:
            raise InventoryError(f"{path}, line 1: no column 'name'", path=path)
        strange = [column for column in header if column not in COLUMNS]
        if strange or len(set(header)) < len(header):
            raise InventoryError(
                f"{path}, line 1: columns are {', '.join(COLUMNS)}, each once, not {', '.join(strange or header)}",
                path=path,
            )
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise InventoryError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, not {len(header)}", path=path
                )
            devices.append({name: _value(name, cell) for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise InventoryError(f"{path}, line {reader.line_num}: {error}", path=path) from error
    return {"devices": devices}


def _cell(value: Any) -> str:
    text = " ".join(value) if isinstance(value, list) else value or ""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _value(column: str, cell: str) -> Any:
    text = cell.removeprefix("'")
    if column in _LISTS:
        return text.split()
    return text if column in {"name", "note"} or text else None
