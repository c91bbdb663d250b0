"""Joins the facts of a board with the intent of a profile: whether they fit, and why not. Pure.

Nothing is guessed in favour of a fit: what cannot be told from what is known is ``unknown``, with what would tell.
"""

from __future__ import annotations

from edgeslm.errors import FitError
from edgeslm.flash.fit_machine import check_machine
from edgeslm.flash.fit_power import check_power
from edgeslm.flash.fit_room import check_room
from edgeslm.flash.fit_software import check_software
from edgeslm.flash.fit_types import Check, FitReport, FitRequest, ModelNeed, Status

__all__ = ["Check", "FitReport", "FitRequest", "ModelNeed", "Status", "demand", "fit"]


def fit(request: FitRequest) -> FitReport:
    """Everything that decides whether a profile works on a board, in the order in which one looks at it."""
    checks = (
        *check_machine(request),
        *check_software(request),
        *check_room(request),
        *check_power(request),
    )
    return FitReport(
        board=request.board.name,
        profile=request.profile.name,
        fits=all(check.status != "fail" for check in checks),
        checks=checks,
    )


def demand(report: FitReport) -> None:
    """Go on only with what fits.

    Raises:
        FitError: it does not; all reasons are told.
    """
    if report.fits:
        return
    reasons = "; ".join(f"{check.name}: {check.detail}" for check in report.faults)
    raise FitError(
        f"profile '{report.profile}' does not fit board '{report.board}': {reasons}",
        board=report.board,
        profile=report.profile,
        hint=report.faults[0].hint,
    )
