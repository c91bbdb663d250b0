"""Host name, time zone, time servers, language and keyboard, where they are plain files of an image.

What always holds: what the image does not know (a time zone, a language) is refused here, on the desk, and not found
out on the board; nothing here has to run on it, but for the making of a language, which the unit of
:mod:`edgeslm.flash.first_boot.settling` does.

Sources: ``hostname(5)``, ``localtime(5)``, ``timesyncd.conf(5)``, chrony.conf(5) ``sourcedir``, ``keyboard(5)``,
``locale.gen(5)``.
"""

from __future__ import annotations

import re

from edgeslm.flash.first_boot.method import FirstBootFiles, Method, refuse
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry

_ZONES = "/usr/share/zoneinfo"
_LANGUAGES = "/usr/share/i18n/SUPPORTED"
_LAYOUTS = "/usr/share/X11/xkb/rules/base.lst"
_NEEDS_NOTHING = "C.UTF-8"
"""Part of the C library itself since glibc 2.35, and of Debian's before."""


def hostname_files(system: System, hostname: str) -> FirstBootFiles:
    """The name, and its address within the board: without that sudo waits for a name server."""
    line = f"127.0.1.1\t{hostname}"
    lines = (system.text("/etc/hosts") or "127.0.0.1\tlocalhost\n").split("\n")
    found = [place for place, old in enumerate(lines) if re.match(r"\s*127\.0\.1\.1\s", old)]
    if found:
        lines[found[0]] = line
        hosts = "\n".join(lines)
    else:
        hosts = "\n".join(lines).rstrip("\n") + f"\n{line}\n"
    return FirstBootFiles(
        root=(
            Entry("/etc/hostname", content=f"{hostname}\n".encode()),
            Entry("/etc/hosts", content=hosts.encode()),
        )
    )


def check_timezone(method: Method, system: System, timezone: str) -> None:
    """See that the image knows a time zone.

    Raises:
        FirstBootOptionError: it does not.
    """
    if not system.has(_ZONES):
        raise refuse(method, "timezone", "has no time zones", "Make the image with the package tzdata.")
    if not system.has(f"{_ZONES}/{timezone}"):
        raise refuse(
            method, "timezone", f"knows no {timezone}", "Zones have names such as Europe/Berlin or Etc/UTC."
        )


def timezone_files(method: Method, system: System, timezone: str) -> FirstBootFiles:
    """The link that says the time zone.

    Raises:
        FirstBootOptionError: the image does not know it.
    """
    check_timezone(method, system, timezone)
    entries = [Entry("/etc/localtime", "symlink", target=f"{_ZONES}/{timezone}")]
    if system.has("/etc/timezone"):  # which Debian gave up with 13
        entries.append(Entry("/etc/timezone", content=f"{timezone}\n".encode()))
    return FirstBootFiles(root=tuple(entries))


def time_server_files(method: Method, system: System, servers: tuple[str, ...]) -> FirstBootFiles:
    """The time servers, for chrony or systemd-timesyncd.

    Raises:
        FirstBootOptionError: the image has neither.
    """
    if system.has_program("chronyd"):
        body = "".join(f"server {server} iburst\n" for server in servers)
        return FirstBootFiles(root=(Entry("/etc/chrony/sources.d/edgeslm.sources", content=body.encode()),))
    if system.unit_path("systemd-timesyncd.service"):
        body = f"[Time]\nNTP={' '.join(servers)}\n"
        path = "/etc/systemd/timesyncd.conf.d/50-edgeslm.conf"
        return FirstBootFiles(root=(Entry(path, content=body.encode()),))
    raise refuse(
        method,
        "ntp",
        "keeps its clock with neither chrony nor systemd-timesyncd",
        "Make the image with one of these packages.",
    )


def check_locale(method: Method, system: System, locale: str) -> None:
    """See that the image can make a language.

    Raises:
        FirstBootOptionError: it cannot.
    """
    if locale == _NEEDS_NOTHING:
        return
    supported = system.text(_LANGUAGES)
    if supported is None or not system.has_program("locale-gen"):
        raise refuse(method, "locale", "has no languages", "Make the image with the package locales.")
    if f"{locale} UTF-8" not in supported.splitlines():
        raise refuse(method, "locale", f"knows no {locale}", "Languages have names such as de_DE.UTF-8.")


def needs_generating(locale: str | None) -> bool:
    """Whether a language has to be made on the board."""
    return locale is not None and locale != _NEEDS_NOTHING


def locale_files(method: Method, system: System, locale: str) -> FirstBootFiles:
    """The language, and the order to make it, which ``locale-gen`` follows.

    Raises:
        FirstBootOptionError: the image cannot make it.
    """
    check_locale(method, system, locale)
    # Debian 13 links the second to the first; writing both would put a file in the place of the link.
    path = "/etc/locale.conf" if system.has("/etc/locale.conf") else "/etc/default/locale"
    entries = [Entry(path, content=f"LANG={locale}\n".encode())]
    if needs_generating(locale):
        wanted = f"{locale} UTF-8"
        lines = [line.rstrip() for line in (system.text("/etc/locale.gen") or "").split("\n")]
        if wanted not in lines:
            body = "\n".join(lines).rstrip("\n")
            body = f"{body}\n{wanted}\n" if body else f"{wanted}\n"
            entries.append(Entry("/etc/locale.gen", content=body.encode()))
    return FirstBootFiles(root=tuple(entries))


def check_keyboard(method: Method, system: System, layout: str) -> None:
    """See that the image can have a keyboard's layout.

    Raises:
        FirstBootOptionError: it cannot.
    """
    if not system.has_program("setupcon"):
        raise refuse(
            method, "keyboard", "sets up no keyboard", "Make the image with the package console-setup."
        )
    rules = system.text(_LAYOUTS)
    if rules is not None and layout not in _layouts(rules):
        raise refuse(
            method, "keyboard", f"knows no layout {layout}", "Layouts have names such as de, gb, us."
        )


def keyboard_files(method: Method, system: System, layout: str) -> FirstBootFiles:
    """The keyboard's layout, and none of what was derived from the one before.

    Raises:
        FirstBootOptionError: the image sets up no keyboard.
    """
    check_keyboard(method, system, layout)
    body = f'XKBMODEL="pc105"\nXKBLAYOUT="{layout}"\nXKBVARIANT=""\nXKBOPTIONS=""\nBACKSPACE="guess"\n'
    cached: tuple[str, ...] = ()
    if system.has("/etc/console-setup"):
        names = system.root.names("/etc/console-setup")
        cached = tuple(f"/etc/console-setup/{name}" for name in names if name.startswith("cached_"))
    return FirstBootFiles(root=(Entry("/etc/default/keyboard", content=body.encode()),), remove_root=cached)


def _layouts(rules: str) -> frozenset[str]:
    found: set[str] = set()
    part = ""
    for line in rules.splitlines():
        if line.startswith("!"):
            part = line[1:].strip()
        elif part == "layout" and line.strip():
            found.add(line.split()[0])
    return frozenset(found)
