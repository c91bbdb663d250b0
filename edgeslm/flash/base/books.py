"""dpkg's books of a new system: which packages lie there, and which files are theirs. Pure.

The packages are written down as unpacked, which is the truth: their maintainers' scripts have not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgeslm.flash.tree import Entry

INFO = "/var/lib/dpkg/info"
_FIELD = re.compile(r"^(Package|Architecture|Multi-Arch):[ \t]*(\S+)", re.MULTILINE)


def stem(control: str) -> str:
    """Begins the names of a package's files in dpkg's books."""
    fields = dict(_FIELD.findall(control))
    name: str = fields["Package"]
    return f"{name}:{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else name


def stanza(control: str, conffiles: Mapping[str, str]) -> str:
    """What dpkg's status says of a package.

    Args:
        control: its control file.
        conffiles: MD5 by path.
    """
    first, _, rest = control.strip().partition("\n")
    lines = [first, "Status: install ok unpacked", rest]
    if conffiles:
        lines.append("Conffiles:")
        lines += [f" {path} {digest}" for path, digest in conffiles.items()]
    return "\n".join(lines) + "\n"


def info_entries(name: str, control_files: Mapping[str, bytes], paths: Sequence[str]) -> list[Entry]:
    """The files about one package.

    Args:
        name: from :func:`stem`.
        control_files: by name.
        paths: all that the package brings, absolute.
    """
    listed = "".join(f"{path}\n" for path in ("/.", *paths)).encode()
    entries = [Entry(f"{INFO}/{name}.list", content=listed)]
    for kind, data in sorted(control_files.items()):
        if kind != "control" and re.fullmatch(r"[a-z0-9]+", kind):
            mode = 0o755 if kind in {"preinst", "postinst", "prerm", "postrm", "config"} else 0o644
            entries.append(Entry(f"{INFO}/{name}.{kind}", content=data, mode=mode))
    return entries
