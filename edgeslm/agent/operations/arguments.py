"""What operations share: reading arguments, and what becomes of one that the end of a process cut off."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from edgeslm.agent.operations.ports import Command
from edgeslm.codec import describe
from edgeslm.errors import OperationError

ArgsT = TypeVar("ArgsT", bound=BaseModel)


def read_args(kind: type[ArgsT], command: Command) -> ArgsT:
    """The arguments of `command`.

    Raises:
        OperationError: they are none of this operation.
    """
    try:
        return kind.model_validate(dict(command.args))
    except ValidationError as error:
        raise OperationError(f"{command.op}: {describe(error)}", reason="refused") from error


def cut_off(command: Command) -> NoReturn:
    """End one that changes nothing, and may be what ended the process: it is not tried a second time.

    Raises:
        OperationError: always.
    """
    raise OperationError(
        f"the agent ended while {command.op} ran",
        reason="failed",
        hint="It changed nothing: ask for it again",
    )
