"""``choose-model``: which of the served models answers prompts that name none, also after a restart.

Doing it twice does no harm. A choice whose model is served no longer is kept and does nothing until it is again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeslm.agent.discovery import CHOOSE_MODEL
from edgeslm.agent.operations.arguments import read_args
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.agent.serving import ServedModels
from edgeslm.errors import OperationError
from edgeslm.files import read_bounded, replace_file
from edgeslm.schema.base import is_identifier
from edgeslm.schema.operation_results import ModelArgs

log = logging.getLogger(__name__)

_MAX_BYTES = 256


class ChooseModel:
    """``Operation``."""

    op = CHOOSE_MODEL
    deadline_s = 30.0

    def __init__(self, models: ServedModels, file: Path) -> None:
        """Take the models, and the file that remembers the choice."""
        self._models = models
        self._file = file

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        name = read_args(ModelArgs, command).name
        if name not in self._models.names():
            served = ", ".join(self._models.names()) or "none"
            raise OperationError(f"model '{name}' is not served here (served: {served})", reason="refused")
        try:
            replace_file(self._file, name.encode())
        except OSError as error:
            raise OperationError(f"the choice cannot be kept: {error.strerror}", reason="failed") from error
        self._models.prefer(name)
        return Done({"name": name})

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        return self.begin(command, progress)


def take_up_choice(models: ServedModels, file: Path) -> None:
    """Prefer the model that was chosen last, if there is one and it is served."""
    try:
        name = read_bounded(file, _MAX_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be read; the first model answers: %s", file, error.strerror)
        return
    if is_identifier(name) and name in models.names():
        models.prefer(name)
    else:
        log.warning("model %r was chosen and is not served; the first one answers", name[:64])
