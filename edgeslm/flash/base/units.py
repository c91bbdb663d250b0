"""Which links enable a systemd unit. Pure.

Source: systemd.unit(5), section [Install].
"""

from __future__ import annotations

import re
from collections.abc import Callable

_ASKED = re.compile(r"^\s*deb-systemd-helper enable '([^'\s]+)'", re.MULTILINE)
_DIRECTORY = "/etc/systemd/system"


def asked_for(script: str) -> list[str]:
    """The units that the ``postinst`` of a package enables."""
    return _ASKED.findall(script)


def enable(name: str, read: Callable[[str], str | None]) -> dict[str, str]:
    """Links that enable a unit and those that go with it: target by path.

    Args:
        name: of the unit, such as ``systemd-networkd.service`` or ``getty@tty1.service``.
        read: content of a unit file by its name; ``None`` where there is none.
    """
    links: dict[str, str] = {}
    waiting, seen = [name], set[str]()
    while waiting:
        unit = waiting.pop()
        if unit in seen:
            continue
        seen.add(unit)
        file = re.sub(r"@[^.]+\.", "@.", unit)
        text = read(file)
        if text is None:
            continue
        target = f"/usr/lib/systemd/system/{file}"
        for key, words in _install(text):
            if key == "Also":
                waiting.extend(words)
            elif key == "Alias":
                links.update({f"{_DIRECTORY}/{word}": target for word in words})
            elif key in {"WantedBy", "RequiredBy", "UpheldBy"}:
                ending = {"WantedBy": "wants", "RequiredBy": "requires", "UpheldBy": "upholds"}[key]
                links.update({f"{_DIRECTORY}/{word}.{ending}/{unit}": target for word in words})
    return links


def _install(text: str) -> list[tuple[str, list[str]]]:
    found = []
    section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Install]" and "=" in stripped and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            found.append((key.strip(), value.split()))
    return found
