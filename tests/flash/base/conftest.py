"""A small archive of packages that is signed as Debian's is, and served on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslm.flash.base.recipe import VIRT, Recipe

TIME_S = 1_700_000_000
KERNEL = "6.12.9-small-arm64"
SMALL = replace(
    VIRT, kernel="linux-image-small", packages=("base-passwd", "busybox-static", "units"), boot_mib=40
)
"""A recipe for what the archive below holds."""

PASSWD_MASTER = (
    "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)
GROUP_MASTER = "root:*:0:\nshadow:*:42:\nutmp:*:43:\nnogroup:*:65534:\n"
UNIT = "[Unit]\nDescription=Small\n\n[Install]\nWantedBy=multi-user.target\nAlias=other.service\n"


def tar_bytes(files: Mapping[str, bytes | str], *, odd: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """An archive; a text is the target of a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = TIME_S, 0o644
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for info in odd:
            archive.addfile(info)
    return out.getvalue()


def ar_bytes(members: Mapping[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        head = f"{name:<16}{TIME_S:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        parts += [head, data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def control_text(name: str, *, depends: str = "", version: str = "1.0") -> str:
    lines = [
        f"Package: {name}",
        f"Version: {version}",
        "Architecture: arm64",
        "Maintainer: nobody <n@localhost>",
    ]
    return "\n".join([*lines, *([f"Depends: {depends}"] if depends else []), "Description: small", ""])


def deb_bytes(
    name: str,
    files: Mapping[str, bytes | str],
    *,
    depends: str = "",
    version: str = "1.0",
    control_files: Mapping[str, bytes] | None = None,
    odd: tuple[tarfile.TarInfo, ...] = (),
) -> bytes:
    """A package."""
    control = {
        "./control": control_text(name, depends=depends, version=version).encode(),
        **(control_files or {}),
    }
    return ar_bytes(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tar_bytes(control)),
            "data.tar.xz": lzma.compress(tar_bytes(files, odd=odd)),
        }
    )


def module_bytes(*, depends: str = "", name: str = "small") -> bytes:
    """A module of the kernel, as far as anybody reads it: an ELF file for arm64 with the section ``.modinfo``."""
    info = f"\0name={name}\0depends={depends}\0license=GPL\0vermagic={KERNEL}\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    body = info + names
    table_at = -(-(64 + len(body)) // 8) * 8
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 183, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    sections = [bytes(64)]
    for at, kind, start, size in ((1, 1, 64, len(info)), (10, 3, 64 + len(info), len(names))):
        sections.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, start, size, 0, 0, 1, 0))
    return (header + body).ljust(table_at, b"\0") + b"".join(sections)


def small_packages() -> dict[str, bytes]:
    """All of the archive's packages, by name."""
    modules = f"./usr/lib/modules/{KERNEL}/"
    enabling = b"#!/bin/sh\nif true; then\n  deb-systemd-helper enable 'small.service'\nfi\n"
    return {
        "linux-image-small": deb_bytes(
            "linux-image-small",
            {
                f"./boot/vmlinuz-{KERNEL}": b"the kernel",
                f"{modules}modules.order": b"kernel/ext4.ko\nkernel/jbd2.ko\n",
                f"{modules}modules.builtin": b"",
                f"{modules}kernel/ext4.ko.xz": lzma.compress(module_bytes(depends="jbd2", name="ext4")),
                f"{modules}kernel/jbd2.ko.xz": lzma.compress(module_bytes(name="jbd2")),
            },
            depends="linux-initramfs-tool",
        ),
        "busybox-static": deb_bytes("busybox-static", {"./bin/busybox": b"the program"}),
        "base-passwd": deb_bytes(
            "base-passwd",
            {
                "./usr/share/base-passwd/passwd.master": PASSWD_MASTER.encode(),
                "./usr/share/base-passwd/group.master": GROUP_MASTER.encode(),
            },
            depends="needed",
        ),
        "needed": deb_bytes(
            "needed",
            {
                "./usr/share/doc/needed/copyright": b"free\n",
                "./usr/share/doc/needed/changelog.gz": b"long\n",
                "./etc/needed.conf": b"setting\n",
                "./usr/share/naïve name/a\\b": b"odd name\n",
                "./usr/lib/sysusers.d/needed.conf": b'u _small 300 "of a service" /var/lib/small\nm nobody shadow\n',
            },
            control_files={"./conffiles": b"/etc/needed.conf\n"},
        ),
        "units": deb_bytes(
            "units",
            {
                "./usr/lib/systemd/system/small.service": UNIT.encode(),
                "./usr/bin/tool": b"#!/bin/sh\n",
                "./usr/bin/alias": "tool",
            },
            control_files={"./postinst": enabling},
        ),
        "unwanted": deb_bytes("unwanted", {"./usr/bin/unwanted": b""}),
    }


@pytest.fixture(scope="session")
def signing() -> Iterator[Callable[[bytes, str], bytes]]:
    """Signs a text with a key of a name; the keyring of a name is what signing nothing gives."""
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    # The path of its agent's socket has to be short.
    with tempfile.TemporaryDirectory(prefix="gpg-", dir="/tmp") as home:
        environment = {**os.environ, "GNUPGHOME": home}

        def gpg(*arguments: str, data: bytes = b"") -> bytes:
            done = subprocess.run(
                ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *arguments],
                input=data, capture_output=True, env=environment, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout

        for name in ("archive", "somebody"):
            gpg("--quick-generate-key", f"{name}@localhost", "ed25519", "sign", "never")

        def sign(data: bytes, name: str) -> bytes:
            who = f"{name}@localhost"
            return gpg("--clearsign", "--local-user", who, data=data) if data else gpg("--export", who)

        yield sign
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


class Mirror:
    """An archive in a directory, served on a port of this machine.

    Attributes:
        keyring: the key that it is signed with.
        cut_after_bytes: packages are served only so far.
    """

    def __init__(self, directory: Path, sign: Callable[[bytes, str], bytes]) -> None:
        self.directory = directory
        self.keyring = directory / "keyring.gpg"
        self.cut_after_bytes: int | None = None
        self.asked: list[str] = []
        self._sign = sign
        directory.mkdir()
        self.keyring.write_bytes(sign(b"", "archive"))
        self.packages = small_packages()
        self.publish()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def pool(self, name: str) -> Path:
        return self.directory / "pool" / f"{name}_1.0_arm64.deb"

    def publish(self, signer: str | None = "archive") -> None:
        """Write all of it: indexes say what the packages are."""
        stanzas = []
        (self.directory / "pool").mkdir(exist_ok=True)
        for name, data in self.packages.items():
            self.pool(name).write_bytes(data)
            with tarfile.open(
                fileobj=io.BytesIO(lzma.decompress(_member(data, "control.tar.xz")))
            ) as archive:
                member = archive.extractfile("./control")
                assert member is not None
                control = member.read().decode()
            stanzas.append(
                f"{control.rstrip()}\nFilename: pool/{self.pool(name).name}\nSize: {len(data)}\n"
                f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
            )
        index = "\n".join(stanzas).encode()
        suite = self.directory / "dists" / "trixie"
        (suite / "main/binary-arm64").mkdir(parents=True, exist_ok=True)
        (suite / "main/binary-arm64/Packages").write_bytes(index)
        release = (
            "Origin: small\nSuite: trixie\nCodename: trixie\nDate: Sat, 01 Jan 2022 00:00:00 UTC\n"
            "Architectures: arm64\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-arm64/Packages\n"
        ).encode()
        for name in ("InRelease", "Release"):
            (suite / name).unlink(missing_ok=True)
        if signer is None:
            (suite / "Release").write_bytes(release)
        else:
            (suite / "InRelease").write_bytes(self._sign(release, signer))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                path = mirror.directory / self.path.lstrip("/").replace("%5f", "_")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                start = int(self.headers["Range"][6:].partition("-")[0]) if "Range" in self.headers else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                cut = mirror.cut_after_bytes if path.suffix == ".deb" else None
                self.wfile.write(data[start:] if cut is None else data[start : start + cut])
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _member(data: bytes, wanted: str) -> bytes:
    at = 8
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name == wanted:
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise AssertionError(wanted)


@pytest.fixture
def mirror(tmp_path: Path, signing: Callable[[bytes, str], bytes]) -> Iterator[Mirror]:
    """An archive that is whole and rightly signed."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt is not installed")
    made = Mirror(tmp_path / "mirror", signing)
    yield made
    made.close()


@pytest.fixture
def recipe() -> Recipe:
    """A recipe for what the archive holds."""
    return SMALL
