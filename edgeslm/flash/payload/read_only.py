"""A root that is only read from the second start on: what an image of Debian or Raspberry Pi OS is given for that.

Pure texts. The first start is as the image has it, since it makes the keys, identity and accounts of the board; at its
end a unit rewrites ``/etc/fstab``, and from the next start on

* ``/`` is mounted read-only, and a power cut can damage nothing in it;
* ``/var`` is an overlay in memory, ``/tmp`` is in memory: whatever services write there is gone with the power;
* the agent's state, with its identity, journal and models, lies in a partition of its own, which stays writable, and
  the agent does not start without it.

``root.sh writable`` takes it back until ``root.sh read-only``.

What always holds: fstab is replaced as a whole and synced, so that a cut leaves the one or the other; what the image's
own first start changed in it stays.

Source: fstab(5), systemd.mount(5) (``x-systemd.requires=``), Linux, filesystems/overlayfs.
"""

from __future__ import annotations

import re

from edgeslm.flash.payload import layout
from edgeslm.flash.payload.drop_ins import SCRIPTS, unit_path, wanted_path
from edgeslm.flash.tree import Entry

STATE_LABEL = "edgeslm-state"
STATE_MOUNT = "/var/lib/private/edgeslm"
"""Where systemd keeps the state of a service whose user is dynamic (systemd.exec(5), ``StateDirectory=``)."""
SEAL_UNIT, VAR_UNIT = "edgeslm-read-only.service", "edgeslm-var.service"
SCRIPT = f"{SCRIPTS}/root.sh"
NEEDS_STATE = f"{layout.UNIT}.d/50-state.conf"
STAYS_WRITABLE = f"{layout.ETC}/root-stays-writable"
_BEGIN, _END = "# --- edgeslm: read-only root begins ---", "# --- edgeslm: read-only root ends ---"
_MEMORY = "/run/edgeslm-var"
_STATE_LINE = (
    f"LABEL={STATE_LABEL} {STATE_MOUNT} ext4 noatime,nosuid,nodev,nofail,x-systemd.device-timeout=300s 0 2"
)
_ROOT_LINE = re.compile(r"(?m)^[^#\s]\S*[ \t]+/[ \t]+\S+[ \t]+\S+")
_SHARE = "25%"
"""Of the memory, at most, for what services write below /var."""

_SCRIPT_TEXT = f"""\
#!/bin/sh
# root.sh read-only | writable: how the root is mounted from the next start on. See docs/flash.md of edgeslm.
set -eu
case "${{1:-}}" in
  read-only | writable) ;;
  *) echo "usage: $0 read-only | writable" >&2; exit 2 ;;
esac
mount -o remount,rw /
awk -v how="$1" '
  $0 == "{_BEGIN}" {{ ours = 1 }}
  !ours && $1 !~ /^#/ && $2 == "/" {{
    count = split($4, words, ",")
    kept = ""
    for (at = 1; at <= count; at++)
      if (words[at] != "ro" && words[at] != "rw") kept = kept words[at] ","
    $4 = kept (how == "read-only" ? "ro" : "rw")
  }}
  !ours {{ print }}
  $0 == "{_END}" {{ ours = 0 }}
' /etc/fstab > /etc/fstab.new
if [ "$1" = read-only ]; then
  cat >> /etc/fstab.new <<'END'
{_BEGIN}
tmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0
tmpfs {_MEMORY} tmpfs mode=0755,nosuid,nodev,size={_SHARE} 0 0
overlay /var overlay lowerdir=/var,upperdir={_MEMORY}/upper,workdir={_MEMORY}/work,x-systemd.requires={VAR_UNIT} 0 0
{_END}
END
  # NetworkManager would write name servers into a file of the root.
  if [ -f /etc/resolv.conf ] && [ ! -L /etc/resolv.conf ] && [ -d /run/NetworkManager ]; then
    ln -s /run/NetworkManager/resolv.conf /etc/resolv.conf.new
    mv /etc/resolv.conf.new /etc/resolv.conf
  fi
  rm -f {STAYS_WRITABLE}
else
  : > {STAYS_WRITABLE}
fi
chmod 644 /etc/fstab.new
sync
mv /etc/fstab.new /etc/fstab
sync
echo "the root is $1 from the next start on"
"""
_SEAL_TEXT = f"""\
[Unit]
Description=Keep the root read-only from the next start on
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
# All that makes this board another one than its image has done its work by then.
After=multi-user.target cloud-init.target cloud-final.service
ConditionPathIsReadWrite=/etc
ConditionPathExists=!{STAYS_WRITABLE}

[Service]
Type=oneshot
ExecStart=/bin/sh {SCRIPT} read-only

[Install]
WantedBy=multi-user.target
"""
_VAR_TEXT = f"""\
[Unit]
Description=Room in memory for what is written below /var
DefaultDependencies=no
RequiresMountsFor={_MEMORY}
Before=var.mount

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mkdir -p -m 0755 {_MEMORY}/upper {_MEMORY}/work
"""
_NEEDS_TEXT = f"""\
[Unit]
RequiresMountsFor={STATE_MOUNT}
"""

OURS = (SCRIPT, NEEDS_STATE, *(unit_path(unit) for unit in (SEAL_UNIT, VAR_UNIT)), wanted_path(SEAL_UNIT))
"""Every path that this module can give."""


def has_root_line(fstab: str) -> bool:
    """Whether fstab says how the root is mounted, which is what is changed."""
    return _ROOT_LINE.search(fstab) is not None


def fstab_with_state(fstab: str) -> str:
    """The text of fstab with the partition of the agent's state."""
    if _STATE_LINE in fstab.splitlines():
        return fstab
    return fstab + ("" if not fstab or fstab.endswith("\n") else "\n") + _STATE_LINE + "\n"


def read_only_entries() -> list[Entry]:
    """Files of ours by which the root becomes read-only."""
    return [
        Entry(layout.OPT, "directory", mode=0o755),
        Entry(SCRIPTS, "directory", mode=0o755),
        Entry(SCRIPT, content=_SCRIPT_TEXT.encode(), mode=0o755),
        Entry(unit_path(SEAL_UNIT), content=_SEAL_TEXT.encode()),
        Entry(wanted_path(SEAL_UNIT), "symlink", target=f"../{SEAL_UNIT}"),
        Entry(unit_path(VAR_UNIT), content=_VAR_TEXT.encode()),
        Entry(NEEDS_STATE, content=_NEEDS_TEXT.encode()),
    ]


def mount_entries() -> tuple[Entry, ...]:
    """Directories that have to be there for the state to be mounted; they stay when the agent is taken away."""
    return (
        Entry("/var/lib/private", "directory", mode=0o700),
        Entry(STATE_MOUNT, "directory", mode=0o755),
    )


def apart(entries: tuple[Entry, ...]) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Entries of the root, and those of the partition of the agent's state by their paths there."""
    root: list[Entry] = []
    state: list[Entry] = []
    for entry in entries:
        if entry.path == layout.STATE:
            continue
        inside = entry.path.removeprefix(f"{layout.STATE}/")
        if inside == entry.path:
            root.append(entry)
        else:
            state.append(
                Entry(f"/{inside}", entry.kind, entry.content, entry.target, entry.mode, entry.uid, entry.gid)
            )
    return tuple(root), tuple(state)
