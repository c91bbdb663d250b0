"""Puts rules together with what they run beside: an agent, a broker alone, or a clock that is wound by hand."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.agent.rules.runner import RuleRunner
from edgeslm.agent.rules.trace import TRACE_NAME, TraceStore
from edgeslm.agent.telemetry import Telemetry
from edgeslm.errors import EdgeslmError
from edgeslm.link.port import Message, SubscribingLink
from edgeslm.schema.message import PromptRequest, Result

if TYPE_CHECKING:
    from edgeslm.agent.ports import Model
    from edgeslm.power.port import EnergyMeter

log = logging.getLogger(__name__)

DEVICE = "here"
"""The device in results of a model that runs in this process."""

Answer = Callable[[PromptRequest, str], Result]
"""Answers a prompt on the account of a rule; an error is a result, too."""


def build_runner(brought: BroughtRules, state_dir: Path, telemetry: Telemetry) -> RuleRunner:
    """The rules of an agent: its own, and those that packages brought.

    Raises:
        JournalError: their trace cannot be kept.
    """

    def raise_event(kind: str, detail: str, figures: Mapping[str, float | str]) -> None:
        telemetry.event("rule" if kind == "rule" else "rules", detail, **figures)

    return RuleRunner(brought.own, TraceStore(state_dir / TRACE_NAME), raise_event, brought=brought)


def check_package_rules(path: Path) -> int:
    """Check the rules that the package file at `path` brings, as a device without others does; how many there are.

    Raises:
        PackageError: it is no package.
        RuleFileError: a rule in it is wrong.
    """
    from edgeslm.agent.rules.brought import brought_files  # noqa: PLC0415
    from edgeslm.models.package import read_rules  # noqa: PLC0415

    files = brought_files(*read_rules(path))
    if not files:
        return 0
    from edgeslm.agent.rules.loading import compile_rules  # noqa: PLC0415

    return len(compile_rules([], files).rules)


def model_answers(reference: str) -> Answer:
    """Answers of a model in this process.

    Raises:
        EdgeslmError: whatever keeps it from being loaded.
    """
    from edgeslm.cli.wiring import open_model  # noqa: PLC0415
    from edgeslm.power.boards import choose_board  # noqa: PLC0415
    from edgeslm.power.meter import EstimatedMeter  # noqa: PLC0415

    return answers_of(open_model(reference), EstimatedMeter(choose_board(None).power))


def answers_of(model: Model, meter: EnergyMeter) -> Answer:
    """Answers of `model`, whatever model a rule names."""
    from edgeslm.agent.answering import answer_request  # noqa: PLC0415
    from edgeslm.agent.intake import error_result  # noqa: PLC0415

    def answer(request: PromptRequest, rule: str) -> Result:
        try:
            return answer_request(model, meter, request, DEVICE, accepted_s=time.monotonic(), rule=rule)
        except EdgeslmError as error:
            return error_result(request.id, DEVICE, error)

    return answer


class BrokerHost:
    """Rules beside a broker and nothing else; a :class:`~edgeslm.agent.rules.runner.Host`."""

    def __init__(self, link: SubscribingLink, answer: Answer | None) -> None:
        """Take the parts.

        Args:
            answer: computes answers; without it every prompt gets an error.
        """
        self._link = link
        self._answer = answer
        self._runner: RuleRunner | None = None
        self._asked: queue.SimpleQueue[tuple[PromptRequest, str, Callable[[Result], None]] | None] = (
            queue.SimpleQueue()
        )
        self._taken_back: set[str] = set()
        self._worker = threading.Thread(target=self._work, name="edgeslm-rules-model", daemon=True)
        self.is_connected = threading.Event()

    def start(self, runner: RuleRunner) -> None:
        """Connect, and let the rules begin.

        Raises:
            LinkError: the link cannot be set up.
            ConfigError: a password or TLS file cannot be used.
        """
        self._runner = runner
        self._worker.start()
        self._link.start(self, runner.filters())
        runner.start(self)

    def stop(self) -> None:
        """End, rules first."""
        if self._runner is not None:
            self._runner.stop()
        self._asked.put(None)
        self._worker.join()
        self._link.stop()

    # --- ``Host`` ------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> int | None:
        """See ``Host``."""
        return self._link.publish(message)

    def change_filters(self, added: Sequence[tuple[str, int]], gone: Sequence[str]) -> None:
        """See ``Host``."""
        if added:
            self._link.subscribe(added)
        if gone:
            self._link.unsubscribe(gone)

    def ask(self, request: PromptRequest, rule: str, told: Callable[[Result], None]) -> None:
        """See ``Host``."""
        self._asked.put((request, rule, told))

    def take_back(self, request_ids: Sequence[str]) -> None:
        """See ``Host``."""
        self._taken_back.update(request_ids)

    def give_way(self) -> None:
        """See ``Host``; nothing else is done here."""

    # --- the link's events ---------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Part of ``LinkEvents``."""
        if self._runner is not None:
            self._runner.on_message(message)
        message.acknowledge()

    def on_connected(self, *, session_present: bool) -> None:
        """Part of ``LinkEvents``."""
        del session_present
        self.is_connected.set()
        if self._runner is not None:
            self._runner.connected()

    def on_disconnected(self, reason: str) -> None:
        """Part of ``LinkEvents``."""
        self.is_connected.clear()
        log.warning("broker lost: %s", reason)

    def on_published(self, token: int) -> None:
        """Part of ``LinkEvents``."""

    # --- the model's thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            request, rule, told = asked
            if request.id in self._taken_back:
                self._taken_back.discard(request.id)
                continue
            told(answer_or_error(self._answer, request, rule))


def answer_or_error(answer: Answer | None, request: PromptRequest, rule: str) -> Result:
    """The answer; an error where there is no model."""
    if answer is not None:
        return answer(request, rule)
    from edgeslm.agent.intake import error_result  # noqa: PLC0415
    from edgeslm.errors import UnknownModelError  # noqa: PLC0415

    return error_result(
        request.id, DEVICE, UnknownModelError("no model runs here: give --model or --answers")
    )
