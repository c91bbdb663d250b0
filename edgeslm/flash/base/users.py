"""Users and groups of a new system, as the packages in it want them. Pure.

Source: base-passwd's master files, sysusers.d(5).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

_LAST_FREE = 999
"""System users are numbered from here downward, as systemd-sysusers does it."""
_LAST_TAKEN = 100
_NO_LOGIN = "/usr/sbin/nologin"


@dataclass
class _User:
    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str


@dataclass
class _Group:
    name: str
    gid: int
    members: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Accounts:
    """The four files.

    Attributes:
        groups: number by name.
    """

    passwd: bytes
    group: bytes
    shadow: bytes
    gshadow: bytes
    groups: dict[str, int]


def accounts(passwd: str, group: str, sysusers: Iterable[str], *, day: int) -> Accounts:
    """Users and groups.

    Args:
        passwd: base-passwd's ``passwd.master``.
        group: base-passwd's ``group.master``.
        sysusers: the files of sysusers.d, in the order of their names.
        day: that passwords count as set on, counted from 1970. Nobody has one: no account can be logged in to.
    """
    users = {user.name: user for user in map(_user, _rows(passwd))}
    groups = {made.name: made for made in map(_group, _rows(group))}
    lines = [shlex.split(line) for text in sysusers for line in text.splitlines() if _says_something(line)]
    # Numbers that are asked for are given out first, so that none is taken by then.
    lines.sort(key=lambda words: (len(words) < 3 or not words[2][:1].isdigit(), words[0][0] != "g"))
    for words in lines:
        _apply(words, users, groups)
    by_number = sorted(users.values(), key=lambda user: user.uid)
    return Accounts(
        passwd=_text(f"{u.name}:x:{u.uid}:{u.gid}:{u.gecos}:{u.home}:{u.shell}" for u in by_number),
        group=_text(f"{g.name}:x:{g.gid}:{','.join(g.members)}" for g in _sorted(groups)),
        shadow=_text(f"{u.name}:!*:{day}:0:99999:7:::" for u in by_number),
        gshadow=_text(f"{g.name}:*::{','.join(g.members)}" for g in _sorted(groups)),
        groups={made.name: made.gid for made in groups.values()},
    )


def _rows(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines() if line]


def _user(row: list[str]) -> _User:
    name, _, uid, gid, gecos, home, shell = row
    return _User(name, int(uid), int(gid), gecos, home, shell)


def _group(row: list[str]) -> _Group:
    name, _, gid, members = row
    return _Group(name, int(gid), [member for member in members.split(",") if member])


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _apply(words: list[str], users: dict[str, _User], groups: dict[str, _Group]) -> None:
    kind, name, number, gecos, home, shell = (*words, *[""] * 6)[:6]
    if kind[0] == "g":
        if name not in groups:
            groups[name] = _Group(name, _number(number, users, groups))
    elif kind[0] == "u":
        if name in users:
            return
        first, _, second = number.partition(":")
        uid = _number(first, users, groups)
        if second:
            gid = groups[second].gid if second in groups else int(second)
        else:
            if name not in groups:
                groups[name] = _Group(name, uid)
            gid = groups[name].gid
        users[name] = _User(name, uid, gid, _or(gecos, ""), _or(home, "/"), _or(shell, _NO_LOGIN))
    elif kind[0] == "m":
        members = groups.setdefault(number, _Group(number, _number("", users, groups))).members
        if name not in members:
            members.append(name)


def _or(text: str, otherwise: str) -> str:
    return otherwise if text in {"", "-"} else text


def _number(text: str, users: dict[str, _User], groups: dict[str, _Group]) -> int:
    taken = {user.uid for user in users.values()} | {group.gid for group in groups.values()}
    if text.isdigit() and int(text) not in taken:
        return int(text)
    return next(number for number in range(_LAST_FREE, _LAST_TAKEN, -1) if number not in taken)


def _sorted(groups: dict[str, _Group]) -> list[_Group]:
    return sorted(groups.values(), key=lambda group: group.gid)


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
