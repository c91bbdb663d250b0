"""From a stock image to one that joins its fleet: looked at, decided, written into a copy, and read back.

:func:`prepare` makes the image, :func:`personalise` another one of it for the next device. Neither changes what it
reads, needs root, mounts anything or asks a network (but for wheels of the agent, where no archive of it is given).
"""

from edgeslm.flash.prepare.personal import PersonalRequest, personalise
from edgeslm.flash.prepare.record import PreparedImage, read_record, record_path
from edgeslm.flash.prepare.request import PrepareRequest, Stage, board_host_name
from edgeslm.flash.prepare.work import Prepared, prepare

__all__ = [
    "PersonalRequest",
    "PrepareRequest",
    "Prepared",
    "PreparedImage",
    "Stage",
    "board_host_name",
    "personalise",
    "prepare",
    "read_record",
    "record_path",
]
