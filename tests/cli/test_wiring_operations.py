from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent.operations.bench import Bench
from edgeslm.agent.operations.diagnostics import Diagnostics
from edgeslm.agent.operations.logs import Logs
from edgeslm.agent.operations.model_change import AbortChange, RetryRelease
from edgeslm.agent.operations.restart import RestartAgent
from edgeslm.agent.operations.self_test import SelfTest
from edgeslm.agent.operations.set_config import SetConfig
from edgeslm.agent.operations.update_agent import UpdateAgent
from edgeslm.cli.wiring_operations import AgentParts, build_operations
from edgeslm.schema.config import AgentConfig

HARMLESS = {"bench", "self-test"}
MEMBERS = {"diagnostics", "logs", "restart"}
CHANGES = {"abort", "retry", "set-config", "update-agent"}
CLASSES: list[Any] = [
    Bench,
    Diagnostics,
    Logs,
    AbortChange,
    RetryRelease,
    RestartAgent,
    SelfTest,
    SetConfig,
    UpdateAgent,
]


class Nothing:
    """Stands for parts that are only kept until an operation is asked for."""

    def publish(self, _message: object) -> None: ...


def built(directory: Path, *, identity: Any, updates: Any) -> Any:
    nothing: Any = Nothing()
    config = AgentConfig(device="dev1", state_dir=directory)
    return build_operations(AgentParts(config, identity, nothing, nothing, nothing, updates), lambda: None)


@pytest.mark.parametrize(
    ("identity", "updates", "offered"),
    [
        (None, None, HARMLESS),
        (Nothing(), None, HARMLESS | MEMBERS),
        (Nothing(), Nothing(), HARMLESS | MEMBERS | CHANGES),
    ],
)
def test_what_a_device_does_depends_on_whom_it_belongs_to(
    tmp_path: Path, identity: Any, updates: Any, offered: set[str]
) -> None:
    made = built(tmp_path, identity=identity, updates=updates)
    assert made._offered.ops == offered
    assert set(made._offered.closed) == (HARMLESS | MEMBERS | CHANGES) - offered
    assert all(made._offered.closed.values())
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_was_not_made_yet_has_the_name_and_time_of_its_own_class(tmp_path: Path) -> None:
    made = built(tmp_path, identity=Nothing(), updates=Nothing())
    declared = {name: operation.deadline_s for name, operation in made._operations.items()}
    assert declared == {one.op: one.deadline_s for one in CLASSES}
