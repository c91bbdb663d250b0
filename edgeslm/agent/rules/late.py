"""Rules for a device that has none: they begin when a package brings some. Until then their code is not loaded.

What always holds: whatever keeps them from beginning is logged, and tried again with the next change; nobody else is
disturbed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.errors import EdgeslmError

if TYPE_CHECKING:
    from edgeslm.agent.ports import Message
    from edgeslm.agent.rules.runner import Host, RuleRunner

log = logging.getLogger(__name__)


class LateRules:
    """A ``RuleSide`` of the agent; a :class:`~edgeslm.agent.rules.runner.RuleRunner` once there are rules."""

    def __init__(self, brought: BroughtRules, make: Callable[[], RuleRunner]) -> None:
        """Take what tells of rules, and who makes what runs them."""
        self._brought = brought
        self._make = make
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._runner: RuleRunner | None = None
        self._is_over = False
        brought.listen(self._look)

    def filters(self) -> list[tuple[str, int]]:
        """See ``RuleSide``."""
        runner = self._runner
        return [] if runner is None else runner.filters()

    def on_message(self, message: Message) -> bool:
        """See ``RuleSide``."""
        runner = self._runner
        return runner is not None and runner.on_message(message)

    def connected(self) -> None:
        """See ``RuleSide``."""
        if self._runner is not None:
            self._runner.connected()

    def start(self, host: Host) -> None:
        """See ``RuleSide``."""
        self._host = host
        self._look()

    def stop(self) -> None:
        """See ``RuleSide``."""
        with self._lock:
            self._is_over = True
        if self._runner is not None:
            self._runner.stop()

    def _look(self) -> None:
        """Begin, if there is reason to."""
        with self._lock:
            host = self._host
            if host is None or self._runner is not None or self._is_over or not self._brought:
                return
            try:
                runner = self._make()
            except EdgeslmError:
                log.exception("the rules that a package brings cannot run")
                return
            self._runner = runner
            host.change_filters(runner.filters(), [])
            runner.start(host)
