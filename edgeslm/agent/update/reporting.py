"""What a device says about itself on ``reported``, from its changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeslm.agent.update.change import Change
from edgeslm.agent.update.machine import denial_of
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.update import ReportedChange, ReportedFault, ReportedModel


@dataclass(frozen=True)
class NameStatus:
    """One name, as the updater sees it.

    Attributes:
        served: what answers its prompts.
        previous: sha256 of what it could go back to.
        change: the latest.
        bytes_here: of the file that is being fetched, and in all; ``None`` where none is.
    """

    name: str
    served: InstalledPackage | None
    previous: str | None
    change: Change | None
    bytes_here: tuple[int, int] | None


def report_models(statuses: Sequence[NameStatus]) -> tuple[ReportedModel, ...]:
    """The part of a report that tells of models, in the order of names."""
    return tuple(_model(status) for status in sorted(statuses, key=lambda status: status.name))


def _model(status: NameStatus) -> ReportedModel:
    served = status.served
    return ReportedModel(
        name=status.name,
        version=None if served is None else served.manifest.version,
        sha256=None if served is None else served.sha256,
        previous=status.previous,
        change=None if status.change is None else _change(status.change, status.bytes_here),
    )


def _change(change: Change, bytes_here: tuple[int, int] | None) -> ReportedChange:
    done_bytes, total_bytes = bytes_here if bytes_here is not None else (None, None)
    return ReportedChange(
        number=change.number,
        version=change.wanted.version,
        sha256=change.wanted.sha256,
        state=change.state,
        assignment=change.wanted.assignment,
        attempt=change.attempt,
        settled=change.settled,
        waits_for=change.waits_for or None,
        done_bytes=done_bytes,
        total_bytes=total_bytes,
        swap_s=change.swap_s,
        fault=_fault(change),
        verdict=change.verdict,
    )


def _fault(change: Change) -> ReportedFault | None:
    if change.fault is None:
        return None
    denial = denial_of(change)
    return ReportedFault(
        cause=change.fault.cause,
        detail=change.fault.detail,
        denied=denial is not None and denial.for_good,
    )
