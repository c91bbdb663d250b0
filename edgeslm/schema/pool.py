"""What a gateway of a pool did, for people and programs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgeslm.schema.base import FileModel

Count = Annotated[int, Field(ge=0)]


class PoolReport(FileModel):
    """One run of a gateway.

    Attributes:
        answered: prompts that got an answer.
        failed: prompts that got an error, because of the prompt or since no device could.
        replaced: times that a prompt went to another device, the first one being gone, refusing, or late.
        repeated: prompts that came once more and were not asked again.
        surplus: answers that came after the first one, and went nowhere.
    """

    fleet: str
    model: str
    answered: Count = 0
    failed: Count = 0
    replaced: Count = 0
    repeated: Count = 0
    surplus: Count = 0
