"""Rewrite the table in docs/profiles.md that tells which profile fits which board.

    python docs/profiles_table.py

Every profile that ships is held against every board that ships, with its own models and nothing else known; what
stands between the markers ``<!-- table:fit -->`` and ``<!-- /table -->`` is replaced.
"""

from __future__ import annotations

from pathlib import Path

import edgeslm
from edgeslm.cli.profile import model_needs
from edgeslm.flash.fit import FitRequest, fit
from edgeslm.flash.profiles import load_profile, profile_names
from edgeslm.power.boards import load_boards

PAGE = Path(__file__).resolve().parent / "profiles.md"
BEGIN, END = "<!-- table:fit -->", "<!-- /table -->"


def fit_table() -> str:
    """Which profile fits which board, as Markdown; where one does not, the checks that say so."""
    profiles = {name: load_profile(name).profile for name in profile_names()}
    needs = {name: model_needs(profile) for name, profile in profiles.items()}
    lines = [f"| board | {' | '.join(profiles)} |", "|---" * (1 + len(profiles)) + "|"]
    for board in load_boards().values():
        cells = []
        for name, profile in profiles.items():
            report = fit(FitRequest(board, profile, needs[name], edgeslm.__version__))
            reasons = ", ".join(dict.fromkeys(check.name for check in report.faults))
            cells.append("fits" if report.fits else f"no: {reasons}")
        lines.append(f"| {board.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """`page` with `table` between the markers.

    Raises:
        ValueError: it has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), fit_table()), "utf-8")
