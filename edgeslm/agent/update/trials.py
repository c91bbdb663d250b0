"""Puts a candidate on trial and measures it; owns the processes that this takes.

Left to others: what a trial may do (:mod:`edgeslm.agent.update.trial`), which of the two ways there is memory for
(:mod:`edgeslm.agent.update.preflight`), and the figures (:mod:`edgeslm.agent.update.measuring`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from edgeslm.agent.update import preflight
from edgeslm.agent.update.child import Launch, TrialProcess, TrialSettings
from edgeslm.agent.update.gate import Block
from edgeslm.agent.update.held import HeldSubject
from edgeslm.agent.update.measuring import Bench, Measurement, right_answers
from edgeslm.agent.update.ports import Cancelled, Device, Serving, Subject, Timed
from edgeslm.errors import EdgeslmError, TrialError, UpdateCause, UpdateError
from edgeslm.models.package import MAX_GOLDEN_BYTES, parse_golden
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import GoldenCase
from edgeslm.schema.update import GatePolicy, Verdict


class Trials:
    """At most one candidate at a time."""

    def __init__(
        self, device: Device, serving: Serving, settings: TrialSettings, spare_mb: int, launch: Launch
    ) -> None:
        """Take the parts.

        Args:
            spare_mb: memory that a trial leaves alone.
            launch: starts processes.
        """
        self._device = device
        self._serving = serving
        self._settings = settings
        self._spare_mb = spare_mb
        self._launch = launch
        self._bench: Bench | None = None

    def begin_beside(
        self, held: InstalledPackage | None, candidate: InstalledPackage, cancelled: Cancelled
    ) -> None:
        """Load the candidate and what serves now, each in a process of its own, and ask both the golden prompts.

        Raises:
            TrialError: the candidate is no good, or there is no memory.
            UpdateError: ``internal``: what serves cannot be measured.
            UpdateInterruptedError: it was cancelled.
        """
        self.close()
        cases = golden_cases(candidate)
        with contextlib.ExitStack() as cleanup:
            reference: _Reference | None = None
            old_right, old_s = None, 0.0
            if held is not None:
                with _not_the_candidates_fault():
                    reference = _Reference(self._start(held, cleanup, cancelled))
                old_right, old_s = self._ask(reference, cases, cancelled)
            subject = self._start(candidate, cleanup, cancelled)
            new_right, new_s = self._ask(subject, cases, cancelled)
            prompt_s = max(old_s, new_s)
            self._bench = Bench("beside", subject, reference, cases, new_right, old_right, prompt_s)
            cleanup.pop_all()

    def begin_swapped(
        self,
        name: str,
        held: InstalledPackage | None,
        candidate: InstalledPackage,
        policy: GatePolicy,
        cancelled: Cancelled,
    ) -> None:
        """Measure what serves now, let the candidate serve in its place, and ask it the golden prompts.

        Raises:
            TrialError: the candidate is no good.
            UpdateError: ``inconclusive``: users left no time to measure.
            UpdateInterruptedError: it was cancelled.
        """
        self.close()
        cases = golden_cases(candidate)
        subject = HeldSubject(self._serving, name)
        before: tuple[Block, ...] = ()
        old_right, old_s = None, 0.0
        if held is not None:
            self._serving.swap(name, held, beside=False)  # an earlier try may have left the candidate there
            reference = _Reference(subject)
            old_right, old_s = self._ask(reference, cases, cancelled)
            measurement = Measurement(self._device, self._serving, policy, cancelled)
            before = measurement.before_swap(reference, cases, old_s) if cases else ()
        try:
            self._serving.swap(name, candidate, beside=False)
        except EdgeslmError as error:
            raise TrialError(str(error), cause="load_failed") from error
        new_right, new_s = self._ask(subject, cases, cancelled)
        # The prompts of a block have to be as many as before.
        self._bench = Bench("swap", subject, None, cases, new_right, old_right, old_s or new_s, before)

    def measure(self, policy: GatePolicy, cancelled: Cancelled) -> Verdict:
        """Compare the two; what :meth:`begin_beside` started is ended unless it was only cancelled.

        Raises:
            TrialError: one of them cannot go on.
            UpdateError: ``under_voltage``, ``inconclusive``, or ``internal``: nothing is on trial.
            UpdateInterruptedError: it was cancelled.
        """
        if self._bench is None:
            raise UpdateError("nothing is on trial", cause="internal")
        verdict = Measurement(self._device, self._serving, policy, cancelled).compare(self._bench)
        self.close()
        return verdict

    def close(self) -> None:
        """End the processes."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    # --- parts -------------------------------------------------------------------------------------------------

    def _start(
        self, installed: InstalledPackage, cleanup: contextlib.ExitStack, cancelled: Cancelled
    ) -> TrialProcess:
        process = TrialProcess(
            installed,
            self._settings,
            preflight.allowance_mb(installed.manifest.requires.ram_mb, self._settings.threads),
            memory_low=self._memory_is_low,
            launch=self._launch,
        )
        cleanup.callback(process.close)
        process.load(cancelled)
        return process

    def _memory_is_low(self) -> bool:
        available_mb = self._device.available_mb()
        return available_mb is not None and available_mb < self._spare_mb // 2

    def _ask(
        self, subject: Subject, cases: tuple[GoldenCase, ...], cancelled: Cancelled
    ) -> tuple[tuple[bool, ...], float]:
        """Which answers are right, and the seconds that a prompt took."""
        began_s = self._device.monotonic()
        right = right_answers(subject, cases, cancelled)
        return right, (self._device.monotonic() - began_s) / max(len(cases), 1)


class _Reference:
    """``Subject`` of the running release: that it fails says nothing about the candidate."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def peak_mb(self) -> float | None:
        """See ``Subject``."""
        return self._subject.peak_mb

    def answer(self, prompts: Sequence[str], cancelled: Cancelled) -> Sequence[Timed]:
        """See ``Subject``; raises an ``UpdateError`` where that raises a ``TrialError``."""
        with _not_the_candidates_fault():
            return self._subject.answer(prompts, cancelled)

    def close(self) -> None:
        """See ``Subject``."""
        self._subject.close()


@contextlib.contextmanager
def _not_the_candidates_fault() -> Iterator[None]:
    try:
        yield
    except TrialError as error:
        cause: UpdateCause = "no_memory" if error.cause == "no_memory" else "internal"
        raise UpdateError(f"what serves cannot be measured: {error}", cause=cause) from error


def golden_cases(installed: InstalledPackage) -> tuple[GoldenCase, ...]:
    """The golden prompts of an installed package; none if it has none.

    Raises:
        PackageError: they are damaged.
    """
    name = installed.manifest.golden
    if name is None:
        return ()
    with installed.file(name).open("rb") as stream:
        data = stream.read(MAX_GOLDEN_BYTES)
    return tuple(parse_golden(data, installed.directory, name))
