"""Images and agents to prepare boards with: small ones that are made in a moment, and one of the size of a vendor's.

The small image has what an operating system is told by (os-release, heads of programs, systemd's files) and no program
that could run.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.agent_update_rig import make_wheel
from edgeslm.agent import launcher
from edgeslm.flash.image.image import open_image
from edgeslm.flash.tree import Entry
from edgeslm.fleet.ca import self_signed
from edgeslm.schema.enrol import Claim
from edgeslm.wheelhouse import write_archive

MIB = 2**20
STAMP_S = 1_700_000_000
BOOT_MIB = 16
_BOOT_AT, _ROOT_AT = 1, 1 + BOOT_MIB
_LIBC = b"\0GNU C Library (Debian GLIBC 2.41-12) stable release version 2.41.\n"
_ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    "SOURCE_DATE_EPOCH": str(STAMP_S),
    "E2FSPROGS_FAKE_TIME": str(STAMP_S),
    "MTOOLS_SKIP_CHECK": "1",
}
_UUID = "11111111-2222-4333-8444-555555555555"


def elf(machine: int = 183) -> bytes:
    """The head of a program; 183 is aarch64, 62 is x86-64."""
    return (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)).ljust(64, b"\0")


def debian(*, machine: int = 183, triplet: str = "aarch64") -> dict[str, bytes]:
    """The telling files of a Debian 13 with systemd, SSH and timesyncd."""
    return {
        "etc/os-release": b'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'
        b"VERSION_CODENAME=trixie\n",
        "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
        "etc/shadow": b"root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
        "etc/group": b"root:x:0:\nsudo:x:27:\nvideo:x:44:\nnogroup:x:65534:\n",
        "etc/gshadow": b"root:*::\nsudo:*::\nvideo:*::\nnogroup:*::\n",
        "etc/hostname": b"board\n",
        "etc/hosts": b"127.0.0.1 localhost\n127.0.1.1 board\n",
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        "etc/fstab": b"LABEL=rootfs / ext4 defaults,noatime 0 1\nLABEL=bootfs /boot/firmware vfat defaults 0 2\n",
        "etc/ssh/ssh_host_ed25519_key": b"of the image\n",
        "etc/sudoers.d/README": b"",
        "etc/skel/.bashrc": b"",
        "etc/systemd/system/multi-user.target.wants/README": b"",
        "boot/firmware/README": b"",
        "usr/bin/true": elf(machine),
        "usr/bin/python3.13": elf(machine),
        "usr/bin/ssh-keygen": elf(machine),
        "usr/bin/sync": elf(machine),
        f"usr/lib/{triplet}-linux-gnu/libc.so.6": elf(machine) + _LIBC,
        "usr/lib/modules/6.12.1/kernel/fs/overlayfs/overlay.ko": b"",
        "usr/lib/modules/6.12.1/kernel/drivers/block/zram/zram.ko": b"",
        "usr/lib/systemd/systemd": elf(machine),
        "usr/lib/systemd/systemd-timesyncd": elf(machine),
        "usr/lib/systemd/system/multi-user.target": b"",
        "usr/lib/systemd/system/ssh.service": b"",
        "usr/lib/systemd/system/systemd-networkd.service": b"",
        "usr/lib/systemd/system/systemd-timesyncd.service": b"",
        "var/lib/dpkg/status": b"Package: python3\nStatus: install ok installed\n\n",
        "var/log/README": b"",
    }


@dataclass(frozen=True)
class ImageParts:
    """What a small image is made of.

    Attributes:
        root: files of the root file system.
        boot: files of the boot partition.
        label: of the partition table: ``dos`` or ``gpt``.
        root_mib: size of the root.
        behind_mib: of one more partition behind it, which keeps it from growing.
    """

    root: Mapping[str, bytes] = field(default_factory=debian)
    boot: Mapping[str, bytes] = field(
        default_factory=lambda: {"cmdline.txt": b"console=tty1 root=LABEL=rootfs rw rootwait\n"}
    )
    links: Mapping[str, str] = field(
        default_factory=lambda: {"usr/bin/python3": "python3.13", "lib": "usr/lib"}
    )
    label: str = "dos"
    root_mib: int = 48
    behind_mib: int = 0


def small_image(path: Path, work: Path, parts: ImageParts | None = None) -> Path:
    """Make an image of a disk with the programs that make those of vendors.

    Args:
        work: an empty directory.
    """
    parts = parts or ImageParts()
    behind = [(_ROOT_AT + parts.root_mib, parts.behind_mib, "83")] if parts.behind_mib else []
    with path.open("wb") as stream:
        stream.truncate((_ROOT_AT + parts.root_mib + parts.behind_mib + 1) * MIB)
    kinds = ("c", "83") if parts.label == "dos" else ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "linux")
    spans = [(_BOOT_AT, BOOT_MIB, kinds[0]), (_ROOT_AT, parts.root_mib, kinds[1]), *behind]
    identity = "0x1a2b3c4d" if parts.label == "dos" else "1A2B3C4D-0000-4000-8000-000000000000"
    lines = [f"label: {parts.label}", f"label-id: {identity}"]
    for number, (start, size, kind) in enumerate(spans, 1):
        own = "" if parts.label == "dos" else f", uuid=AAAAAAAA-0000-4000-8000-00000000000{number}"
        lines.append(f"start={start}MiB, size={size}MiB, type={kind}{own}")
    _run("sfdisk", "-q", path, stdin="\n".join(lines) + "\n")
    _run("mkfs.vfat", "--offset", _BOOT_AT * 2048, "-i", "12345678", "-n", "bootfs", path, BOOT_MIB * 1024)
    for each in sorted(_lay(work / "boot", parts.boot, {}).iterdir()):
        _run("mcopy", "-s", "-i", f"{path}@@{_BOOT_AT * MIB}", each, "::")
    _run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-U", _UUID, "-L", "rootfs", "-I", 256,
        "-E", f"offset={_ROOT_AT * MIB},hash_seed={_UUID},root_owner=0:0",
        "-d", _lay(work / "root", parts.root, parts.links), path, f"{parts.root_mib}M",
    )  # fmt: skip
    return path


def small_agent(directory: Path, version: str = "0.1.0", tag: str = "py3-none-any") -> Path:
    """An archive of an agent of a few files, which comes with the launcher and a model that is none."""
    wheel = make_wheel(
        directory / "wheels", version, tag=tag,
        files={
            "edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8"),
            "edgeslm/_packages/home-command.slm": "a model\n",
            f"edgeslm-{version}.dist-info/entry_points.txt": "[console_scripts]\nedgeslm = edgeslm.__main__:main\n",
        },
    )  # fmt: skip
    out = directory / f"agent-{version}-{tag}.tar"
    write_archive([wheel], out)
    return out


def a_claim(device: str | None = "porch", *, days: float = 1.0) -> Claim:
    """A claim of a fleet that has an authority and no more."""
    now = datetime.now(UTC)
    return Claim(
        fleet="green", claim="abcdef", secret="0" * 16, device=device, host="broker.example", port=8884,
        ca=_authority(), expires_at=now + timedelta(days=days),
    )  # fmt: skip


@lru_cache
def _authority() -> str:
    return self_signed(ec.generate_private_key(ec.SECP256R1()), "green", datetime.now(UTC))


def large_image(base: Path, out: Path, *, image_bytes: int, data_bytes: int) -> None:
    """Make `base`, a raw image, as large as those of vendors, and put data into it that does not compress.

    Raises:
        EdgeslmError: it cannot be made larger.
        OSError: the disk refuses.
    """
    _run("cp", "--sparse=always", base, out)
    filling = out.with_name(f"{out.name}.filling")
    numbers = random.Random(1)
    with filling.open("wb") as stream:
        for _ in range(data_bytes // MIB):
            stream.write(numbers.randbytes(MIB))
    try:
        with open_image(out) as image:
            image.grow(image_bytes)
            image.root.write([Entry("/usr/share/filling", content=filling)])
    finally:
        filling.unlink()


def _lay(directory: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if content.startswith(b"\x7fELF"):
            path.chmod(0o755)
    for name, target in links.items():
        (directory / name).symlink_to(target)
    return directory


def _run(*command: object, stdin: str = "") -> None:
    subprocess.run(
        [str(word) for word in command], input=stdin.encode(), env=_ENVIRONMENT, check=True, capture_output=True,
        timeout=600,
    )  # fmt: skip
