"""Which Debian packages an image has, from dpkg's own list. Reading the list is left to others."""

from __future__ import annotations

from typing import Final

STATUS_PATH: Final = "/var/lib/dpkg/status"
MAX_STATUS_BYTES: Final = 32 * 2**20
"""A desktop system has some 3 MB."""


def installed_packages(status: bytes) -> frozenset[str]:
    """Names of the packages that are installed according to ``/var/lib/dpkg/status``.

    Source: deb-control(5) for the form of the list, dpkg-query(1) for the states; a package counts with
    its files in place, whatever is wanted of it: a base image has them ``unpacked``, its scripts not run.
    """
    found: set[str] = set()
    name = ""
    for line in status.decode("utf-8", "replace").splitlines():
        field, _, value = line.partition(":")
        if field == "Package":
            name = value.strip()
        elif field == "Status" and value.split()[-1:] in (["installed"], ["unpacked"]):
            found.add(name)
        elif not line:
            name = ""
    return frozenset(found - {""})
