"""Texts that firmware and loaders read, changed: config.txt, the kernel's command line, extlinux.conf, armbianEnv.txt.

Pure. What always holds: the command line stays one line; what is not ours stays as it is, byte by byte; changing a text
twice is changing it once.

Source: Raspberry Pi documentation, "config.txt" (later lines win, ``[all]`` ends a conditional, an empty ``dtoverlay=``
ends the parameters of an overlay) and "Kernel command line"; Linux, admin-guide/kernel-parameters (quotes);
freedesktop.org Boot Loader Specification and U-Boot, doc/README.distro (extlinux.conf); Armbian, armbianEnv.txt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

BEGIN = "# --- edgeslm begins: written by edgeslm flash, and replaced by it ---"
END = "# --- edgeslm ends ---"
MAX_TEXT_BYTES = 65_536
MAX_COMMAND_LINE = 2048
"""Bytes of a kernel's command line on arm64 (COMMAND_LINE_SIZE)."""

_REPEATED = frozenset({"cgroup_disable", "cgroup_enable", "console", "earlycon", "video"})
"""Parameters that may be there several times, each with a meaning of its own."""
_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_BLOCK = re.compile(rf"(?ms)^{re.escape(BEGIN)}\r?\n.*?^{re.escape(END)}\r?\n?")
_APPEND = re.compile(r"(?m)^(?P<key>[ \t]*append[ \t]+)(?P<words>[^\r\n]*)", re.IGNORECASE)
_EXTRA = re.compile(r"(?m)^extraargs=(?P<words>[^\r\n]*)")


def with_block(text: str, lines: Sequence[str]) -> str:
    """`text` with our marked block at its end holding `lines`; without one where there are none."""
    end = "\r\n" if "\r\n" in text else "\n"
    kept = _BLOCK.sub("", text)
    if not lines:
        return kept
    if kept and not kept.endswith("\n"):
        kept += end
    return kept + end.join((BEGIN, *lines, END)) + end


def without_lines(text: str, unwanted: re.Pattern[str]) -> str:
    """`text` without the lines outside of our block that `unwanted` matches whole."""
    return "".join(line for line in text.splitlines(keepends=True) if not unwanted.fullmatch(line.strip()))


def option(text: str, key: str) -> str | None:
    """The last value of a key of config.txt, whatever its section; ``None`` where it is not there."""
    found = re.findall(rf"(?m)^[ \t]*{re.escape(key)}[ \t]*=[ \t]*([^\r\n#]*)", text)
    return found[-1].strip() if found else None


def words(line: str) -> tuple[str, ...]:
    """The parameters of a kernel's command line; what is quoted stays together."""
    return tuple(_WORD.findall(line))


def changed_words(
    line: str,
    changes: Mapping[str, str | bool],
    *,
    add: Sequence[str] = (),
    remove: Collection[str] = (),
) -> str:
    """A kernel's command line, changed.

    Args:
        line: as it is.
        changes: by parameter: a text is its value, ``True`` the bare word, ``False`` takes it out.
        add: whole words that are added where they are not there.
        remove: whole words that are taken out first.
    """
    found = [word for word in words(line) if word not in remove]
    for key, value in changes.items():
        wanted = None if value is False else key if value is True else f"{key}={value}"
        if wanted is not None and key in _REPEATED:
            found += [] if wanted in found else [wanted]
            continue
        places = [at for at, word in enumerate(found) if _key(word) == _plain(key)]
        if wanted is not None and places:
            found[places[0]] = wanted
            places = places[1:]
        elif wanted is not None:
            found.append(wanted)
        found = [word for at, word in enumerate(found) if at not in places]
    found += [word for word in dict.fromkeys(add) if word not in found]
    return " ".join(found)


def added_words(before: str, after: str) -> tuple[str, ...]:
    """The words that `after` has and `before` has not."""
    old = set(words(before))
    return tuple(word for word in words(after) if word not in old)


def extlinux_words(text: str) -> str | None:
    """The parameters of the first entry of an extlinux.conf; ``None`` where it has none."""
    found = _APPEND.search(text)
    return found["words"].strip() if found else None


def with_extlinux_words(text: str, line: str) -> str:
    """An extlinux.conf whose first entry has the parameters `line`, and with it all that had the same."""
    first = extlinux_words(text)

    def replaced(found: re.Match[str]) -> str:
        return found["key"] + line if found["words"].strip() == first else found[0]

    return _APPEND.sub(replaced, text)


def armbian_words(text: str) -> str:
    """The parameters that an armbianEnv.txt adds."""
    found = _EXTRA.search(text)
    return found["words"].strip() if found else ""


def with_armbian_words(text: str, line: str) -> str:
    """An armbianEnv.txt that adds the parameters `line`."""
    if _EXTRA.search(text):
        return _EXTRA.sub(lambda _: f"extraargs={line}", text, count=1)
    return text + ("" if not text or text.endswith("\n") else "\n") + f"extraargs={line}\n"


def _key(word: str) -> str:
    return _plain(word.partition("=")[0])


def _plain(key: str) -> str:
    """Dashes and underscores are one in names of parameters (kernel-parameters)."""
    return key.replace("-", "_")
