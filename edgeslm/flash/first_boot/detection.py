"""Which way of being customised an image has.

What always holds: the answer comes from files of the image alone, never from its name; an image that has none of the
ways is refused with what was looked for.
"""

from __future__ import annotations

from edgeslm.errors import FirstBootUnknownError
from edgeslm.flash.first_boot import armbian, cloud_init, dietpi, direct, firstrun, preseed
from edgeslm.flash.first_boot.method import Method
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Tree

LOOKED_FOR = (
    dietpi.LOOKED_FOR,
    preseed.LOOKED_FOR,
    cloud_init.LOOKED_FOR,
    armbian.LOOKED_FOR,
    firstrun.LOOKED_FOR,
    direct.LOOKED_FOR,
)
"""In this order: what is made for a purpose before what many images have."""


def detect(boot: Tree | None, root: Tree) -> Method:
    """The way of an image.

    Args:
        boot: its boot partition, if it has one that can be read.
        root: its root file system.

    Raises:
        FirstBootUnknownError: it has none that is known.
        TreeError: it cannot be read.
    """
    system = System(boot, root)
    if dietpi.is_dietpi(system):
        return dietpi.DietPi(system)
    if preseed.is_preseed(system):
        return preseed.Preseed(system)
    if cloud_init.is_cloud_init(system):
        return cloud_init.CloudInit(system)
    if armbian.is_armbian(system):
        return armbian.Armbian(system)
    if firstrun.is_firstrun(system):
        return firstrun.FirstRun(system)
    if direct.is_direct(system):
        return direct.Direct(system)
    raise FirstBootUnknownError(
        f"how {system.os_title} is customised is not known; looked for: {'; '.join(LOOKED_FOR)}",
        looked_for=LOOKED_FOR,
        hint="Prepare it without host name, user, SSH, network, language and time; set them on the board.",
    )
