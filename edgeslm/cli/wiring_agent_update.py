"""Puts the update of the agent itself together: trust and delivery of its fleet, and how it knows that it is well."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import edgeslm
from edgeslm.agent.environments import Cancelled
from edgeslm.agent.installation import find_installation
from edgeslm.agent.operations.guest import Guest, golden_cases
from edgeslm.agent.operations.update_agent import UpdateAgent
from edgeslm.cli.wiring_updates import BrokerSource, is_address
from edgeslm.delivery.deliver import deliver
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.file_source import FileSource
from edgeslm.delivery.http_source import HttpSource, blob_path
from edgeslm.delivery.policy import Conditions
from edgeslm.delivery.port import BlockSource, Polled, Progress
from edgeslm.errors import DeltaError, EdgeslmError
from edgeslm.schema.agent_release import AgentInfo
from edgeslm.schema.config import BROKER_RELEASES, UpdatesConfig
from edgeslm.schema.delivery import BlobRef, DeliveryTarget

if TYPE_CHECKING:
    from edgeslm.agent.service import Agent
    from edgeslm.cli.wiring_operations import AgentParts

FETCHED_NAME: Final = "fetched-agent"
"""Beside the packages' own: what is fetched there is tidied up by the updater of models."""


class FetchedAgents:
    """``Bring``: from caches, repository or broker, as packages come."""

    def __init__(
        self, fetcher: Fetcher, config: UpdatesConfig, releases: str, broker: Callable[[], BlockSource]
    ) -> None:
        """Take the parts.

        Args:
            releases: address or directory of the repository, or ``mqtt:``.
            broker: makes the source that is asked last.
        """
        self._fetcher = fetcher
        self._config = config
        self._releases = releases
        self._broker = broker

    def fetch(self, info: AgentInfo, on_share: Callable[[float], None], cancelled: Cancelled) -> Path:
        """See ``Bring``."""

        def told(progress: Progress) -> None:
            on_share(progress.done_bytes / progress.blob.size_bytes)

        with ExitStack() as stack:
            sources = self._sources(info)
            for source in sources:
                stack.callback(source.close)
            return deliver(
                DeliveryTarget(
                    package=BlobRef(
                        sha256=info.sha256, size_bytes=info.size_bytes, chunks_sha256=info.chunks_sha256
                    )
                ),
                sources,
                self._config.delivery,
                self._fetcher,
                have=(),
                rebuild=_no_deltas,
                conditions=lambda: Conditions(self._config.is_metered, datetime.now().astimezone()),
                progress=told,
                cancelled=Polled(cancelled),
            )

    def forget(self) -> None:
        """See ``Bring``."""
        self._fetcher.keep_only(())

    def _sources(self, info: AgentInfo) -> list[BlockSource]:
        near: list[BlockSource] = [
            HttpSource(where, reach="lan") if is_address(where) else FileSource(Path(where))
            for where in self._config.sources
        ]
        return [*near, *self._repository(info), self._broker()]

    def _repository(self, info: AgentInfo) -> list[BlockSource]:
        if self._releases == BROKER_RELEASES:
            return []
        if not is_address(self._releases):
            directory = (Path(self._releases) / info.file_path).parent
            return [FileSource(directory)] if directory.is_dir() else []
        paths = {info.sha256: info.file_path, info.chunks_sha256: info.chunks_path}
        return [HttpSource(self._releases, path=lambda blob: paths.get(blob.sha256) or blob_path(blob))]


class AgentHealth:
    """``Health``: at the broker, and every model that was served answers."""

    def __init__(self, agent: Agent, guest: Guest) -> None:
        self._agent = agent
        self._guest = guest
        self._answered: set[str] = set()

    def served(self) -> list[str]:
        """See ``Health``."""
        return list(self._guest.models.names())

    def missing(self, served: Sequence[str], cancelled: Cancelled) -> str | None:
        """See ``Health``."""
        if not self._agent.wait_connected(0):
            return "it is not at the broker"
        now = self.served()
        lost = [name for name in served if name not in now]
        if lost or not now:
            return f"it does not serve {', '.join(lost) or 'anything'}"
        for name in now:
            if name not in self._answered and (fault := self._asked(name, cancelled)) is not None:
                return fault
            self._answered.add(name)
        return None

    def _asked(self, name: str, cancelled: Cancelled) -> str | None:
        """What keeps a model from answering one of its golden prompts; that of a user says as much."""
        activity = self._guest.models.activity(name)
        installed = self._guest.models.served(name)
        if activity.begun - activity.failed - activity.is_busy > 0 or installed is None:
            return None
        try:
            for case in golden_cases(installed, 1):
                self._guest.ask(name, case, _Silent(cancelled))
        except EdgeslmError as error:
            return f"{name} does not answer: {error.message}"
        return None


class _Silent:
    """``Progress`` of a prompt that is asked for its own sake."""

    def __init__(self, is_cancelled: Cancelled) -> None:
        self.is_cancelled = is_cancelled

    def tell(self, text: str, share: float | None = None) -> None:
        """See ``Progress``."""


def build_update_agent(parts: AgentParts) -> UpdateAgent:
    """The operation, on a device that follows a release repository."""
    agent, config, updates = parts.running, parts.config, parts.updates
    assert updates is not None  # noqa: S101 - offered only then
    return UpdateAgent(
        find=lambda: find_installation(Path(sys.prefix), os.environ),
        vouch=updates.judge.vouch,
        bring=FetchedAgents(
            Fetcher(config.state_dir / FETCHED_NAME),
            config.updates,
            updates.where,
            lambda: BrokerSource(agent, config.fleet, config.device),
        ),
        health=AgentHealth(
            agent, Guest(parts.served, parts.power.monitor.meter, lambda: parts.running.waiting)
        ),
        agent=edgeslm.__version__,
    )


def _no_deltas(path: Path, base_sha256: str, out: Path, package: BlobRef) -> None:
    del base_sha256, out, package
    raise DeltaError(f"{path.name}: the agent comes whole", path=str(path))
