"""Users of an image, written into its own files: passwd(5), shadow(5), group(5), gshadow(5).

What always holds: lines that are not about the user stay byte for byte; the files keep their owners and modes; an
account of the system is never changed into one for people. Nothing needs to run on the board, so that nothing can be
cut short there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgeslm.errors import FirstBootError
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry, resolve
from edgeslm.schema.customisation import Account

_FIRST_UID, _LAST_UID = 1000, 59999
"""Of people, as Debian gives them (Debian Policy, 9.2.2)."""
GROUPS = ("adm", "audio", "dialout", "gpio", "i2c", "netdev", "plugdev", "spi", "sudo", "users", "video")
"""What a person at a board is in, of those groups that the image has."""
_MAX_BYTES = 2**22
LOCKED = "*"
"""What no password ever hashes to."""


@dataclass(frozen=True)
class Person:
    """A user who is there."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Accounts:
    """The four files.

    Attributes:
        gshadow: ``None`` where the image has none.
    """

    passwd: str
    shadow: str
    group: str
    gshadow: str | None = None

    def person(self, name: str) -> Person | None:
        """The user of that name; ``None`` where there is none."""
        return next((person for person in self.people() if person.name == name), None)

    def first_person(self) -> Person | None:
        """The user whom an image made first, by the number that all give to that one."""
        return next((person for person in self.people() if person.uid == _FIRST_UID), None)

    def people(self) -> tuple[Person, ...]:
        """All users, those of the system too."""
        found = []
        for line in _lines(self.passwd):
            fields = line.split(":")
            if len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
                found.append(Person(fields[0], int(fields[2]), int(fields[3]), fields[5]))
        return tuple(found)

    def with_password(self, name: str, password_hash: str | None) -> Accounts:
        """The same but for the password of `name`; ``None`` locks it."""
        # An empty date of the last change switches ageing off, and needs no clock to be right.
        line = f"{name}:{password_hash or LOCKED}::0:99999:7:::"
        return replace(self, shadow=_with_line(self.shadow, name, line))

    def with_person(self, account: Account, groups: Iterable[str]) -> Accounts:
        """The same with `account`, a new one or one for people that is there.

        Raises:
            FirstBootError: the name is that of an account of the system, or no number is free.
        """
        there = self.person(account.name)
        if there is not None:
            if not account.is_root and not _FIRST_UID <= there.uid <= _LAST_UID:
                raise FirstBootError(
                    f"--user: {account.name} is an account of the system in this image",
                    hint="Choose another name.",
                )
            return self.with_password(account.name, account.password_hash)
        if _has_line(self.group, account.name):
            raise FirstBootError(
                f"--user: {account.name} is a group of the system in this image", hint="Choose another name."
            )
        number = self._free_number()
        passwd = f"{account.name}:x:{number}:{number}::/home/{account.name}:/bin/bash"
        made = replace(
            self,
            passwd=_with_line(self.passwd, account.name, passwd),
            group=_with_line(self.group, account.name, f"{account.name}:x:{number}:"),
            gshadow=None
            if self.gshadow is None
            else _with_line(self.gshadow, account.name, f"{account.name}:!::"),
        )
        return made._in_groups(account.name, groups).with_password(account.name, account.password_hash)

    def _in_groups(self, name: str, groups: Iterable[str]) -> Accounts:
        wanted = frozenset(groups)
        return replace(
            self,
            group=_with_member(self.group, name, wanted),
            gshadow=None if self.gshadow is None else _with_member(self.gshadow, name, wanted),
        )

    def _free_number(self) -> int:
        taken = {person.uid for person in self.people()} | {person.gid for person in self.people()}
        taken |= {int(line.split(":")[2]) for line in _lines(self.group) if _is_numbered_group(line)}
        for number in range(_FIRST_UID, _LAST_UID + 1):
            if number not in taken:
                return number
        raise FirstBootError("--user: no user number is free in this image")


def read_accounts(system: System) -> Accounts:
    """The users of an image.

    Raises:
        FirstBootError: it has no such files.
        TreeError: they cannot be read.
    """
    found: dict[str, str] = {}
    for name in ("passwd", "shadow", "group", "gshadow"):
        path = resolve(system.root, f"/etc/{name}")
        if system.root.stat(path) is not None:
            # What is no UTF-8 in them has to come out as it went in.
            body = system.root.read(path, max_bytes=_MAX_BYTES)
            found[name] = body.decode(errors="surrogateescape")
    if not {"passwd", "shadow", "group"} <= found.keys():
        raise FirstBootError("the image has no /etc/passwd, /etc/shadow or /etc/group")
    return Accounts(found["passwd"], found["shadow"], found["group"], found.get("gshadow"))


def account_entries(system: System, before: Accounts, after: Accounts) -> tuple[Entry, ...]:
    """The files that differ, each with the owner and mode that it had."""
    entries = []
    for name in ("passwd", "shadow", "group", "gshadow"):
        old, new = getattr(before, name), getattr(after, name)
        if new is None or new == old:
            continue
        path = resolve(system.root, f"/etc/{name}")
        node = system.root.stat(path)
        mode, uid, gid = (node.mode, node.uid, node.gid) if node is not None else (0o644, 0, 0)
        entries.append(Entry(path, content=new.encode(errors="surrogateescape"), mode=mode, uid=uid, gid=gid))
    return tuple(entries)


def home_entries(system: System, person: Person, *, is_new: bool) -> tuple[Entry, ...]:
    """A home directory with what ``/etc/skel`` has; nothing for one that is there."""
    if not is_new:
        return ()
    entries = [Entry(person.home, "directory", mode=0o700, uid=person.uid, gid=person.gid)]
    if system.has("/etc/skel"):
        for name in system.root.names("/etc/skel"):
            source = f"/etc/skel/{name}"
            node = system.root.stat(source)
            if node is not None and node.kind == "file":
                body = system.root.read(source, max_bytes=2**20)
                entries.append(
                    Entry(
                        f"{person.home}/{name}", content=body, mode=node.mode, uid=person.uid, gid=person.gid
                    )
                )
    return tuple(entries)


def key_entries(person: Person, keys: Sequence[str]) -> tuple[Entry, ...]:
    """``authorized_keys`` with these keys, in place of those that are there."""
    if not keys:
        return ()
    body = "".join(f"{key}\n" for key in keys).encode()
    return (
        Entry(f"{person.home}/.ssh", "directory", mode=0o700, uid=person.uid, gid=person.gid),
        Entry(
            f"{person.home}/.ssh/authorized_keys", content=body, mode=0o600, uid=person.uid, gid=person.gid
        ),
    )


def sudo_entries(system: System, account: Account) -> tuple[Entry, ...]:
    """The rule by which a user whom only a key lets in, and who has no password to give, still becomes root."""
    if account.is_root or account.password_hash is not None or not system.has("/etc/sudoers.d"):
        return ()
    body = f"{account.name} ALL=(ALL) NOPASSWD: ALL\n".encode()
    return (Entry(f"/etc/sudoers.d/010_{account.name}-nopasswd", content=body, mode=0o440),)


# --- lines ------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _is_numbered_group(line: str) -> bool:
    fields = line.split(":")
    return len(fields) == 4 and fields[2].isdecimal()


def _has_line(text: str, name: str) -> bool:
    return any(line.split(":", 1)[0] == name for line in _lines(text))


def _with_line(text: str, name: str, line: str) -> str:
    lines = _lines(text)
    for place, old in enumerate(lines):
        if old.split(":", 1)[0] == name:
            lines[place] = line
            break
    else:
        lines.append(line)
    return "".join(f"{each}\n" for each in lines)


def _with_member(text: str, name: str, groups: frozenset[str]) -> str:
    lines = []
    for line in _lines(text):
        fields = line.split(":")
        if len(fields) == 4 and fields[0] in groups and name not in fields[3].split(","):
            fields[3] = f"{fields[3]},{name}" if fields[3] else name
            line = ":".join(fields)  # noqa: PLW2901
        lines.append(line)
    return "".join(f"{each}\n" for each in lines)
