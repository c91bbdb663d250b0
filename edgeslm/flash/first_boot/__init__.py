"""Who the board is at its first boot: host name, user, keys, network, in the way that its image understands.

:func:`detect` finds that way from the image's files; its ``files`` says what to write. Each way is a file of this
package that says where its behaviour can be read.
"""

from edgeslm.flash.first_boot.detection import detect
from edgeslm.flash.first_boot.method import FirstBootFiles, Method

__all__ = ["FirstBootFiles", "Method", "detect"]
