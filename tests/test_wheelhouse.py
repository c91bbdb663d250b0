"""Archives of the agent: one byte form, and nothing else is one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.agent_update_rig import make_archive, make_wheel
from edgeslm import wheelhouse
from edgeslm.codec import encode
from edgeslm.errors import AgentArchiveError
from edgeslm.schema.agent_release import AgentManifest, AgentRequirements, AgentWheel
from edgeslm.wheelhouse import check_archive, unpack, write_archive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("archive")
    wheels = [
        make_wheel(directory / "wheels", "1.2.0"),
        make_wheel(directory / "wheels", "3.1", name="other"),
    ]
    write_archive(wheels, directory / "agent.tar", agent="0.9.0")
    return directory / "agent.tar"


def refused(data: bytes, directory: Path) -> str:
    path, out = directory / "bad.tar", directory / "out"
    path.write_bytes(data)
    out.mkdir(exist_ok=True)
    with pytest.raises(AgentArchiveError) as found:
        check_archive(path)
    with pytest.raises(AgentArchiveError):
        unpack(path, out)
    assert {name.suffix for name in out.iterdir()} <= {".whl"}
    assert not list(directory.parent.glob("evil*"))
    for leftover in out.iterdir():
        leftover.unlink()
    return str(found.value)


class TestAnArchive:
    def test_holds_what_was_packed(self, made: Path, tmp_path: Path):
        found = check_archive(made)
        assert [wheel.file for wheel in found.manifest.wheels] == [
            "edgeslm-1.2.0-py3-none-any.whl",
            "other-3.1-py3-none-any.whl",
        ]
        assert (found.manifest.version, found.manifest.requires.agent) == ("1.2.0", "0.9.0")
        assert found.size_bytes == made.stat().st_size
        unpack(made, tmp_path)
        for wheel in (made.parent / "wheels").iterdir():
            assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()

    def test_has_the_same_bytes_each_time(self, made: Path, tmp_path: Path):
        write_archive(
            sorted((made.parent / "wheels").iterdir(), reverse=True), tmp_path / "again.tar", agent="0.9.0"
        )
        assert (tmp_path / "again.tar").read_bytes() == made.read_bytes()

    def test_can_be_listed_by_any_tar(self, made: Path):
        listed = subprocess.run(
            ["tar", "tf", made], check=True, capture_output=True, text=True
        ).stdout.split()
        assert listed == ["manifest.json", *(wheel.member for wheel in check_archive(made).manifest.wheels)]

    def test_that_is_told_of_each_piece_can_be_left(self, made: Path, tmp_path: Path):
        def leave(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unpack(made, tmp_path, leave)


class TestIsNone:
    def test_where_any_byte_behind_the_manifest_is_another(self, made: Path, tmp_path: Path):
        data = made.read_bytes()
        begins = 512 + int(data[124:135], 8)
        for at in [*range(0, 512, 5), *range(begins, len(data), 17)]:
            refused(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], tmp_path)

    def test_where_it_ends_too_early(self, made: Path, tmp_path: Path):
        data = made.read_bytes()
        for size in [*range(0, len(data), 101), len(data) - 1]:
            assert "ends before it does" in refused(data[:size], tmp_path) or size == 0

    def test_where_anything_follows(self, made: Path, tmp_path: Path):
        assert "does not end" in refused(made.read_bytes() + bytes(512), tmp_path)

    @settings(max_examples=60, deadline=None)
    @given(data=st.binary(max_size=2048))
    def test_random_bytes(self, data: bytes, tmp_path_factory: pytest.TempPathFactory):
        refused(data, tmp_path_factory.getbasetemp())

    @pytest.mark.parametrize(
        "name",
        [
            "../evil.whl",
            "/tmp/evil.whl",
            "a/evil.whl",
            "evil.py",
            ".whl",
            "evil.whl\0.txt",
            "é.whl",
            "x" * 260 + ".whl",
        ],
    )
    def test_where_a_wheel_has_another_name_than_that_of_one(self, made: Path, tmp_path: Path, name: str):
        manifest = check_archive(made).manifest
        wheel = AgentWheel.model_construct(file=name, sha256="a" * 64, size_bytes=5)
        bad = manifest.model_copy(update={"wheels": (manifest.wheels[0], wheel)})
        assert "manifest" in refused(_with_manifest(encode(bad)), tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"version": "9.9.9"},
            {"entry": "os"},
            {"wheels": ()},
            {"unknown": 1},
            {"installed_bytes": 2**60},
        ],
    )
    def test_where_the_manifest_says_what_cannot_be(
        self, made: Path, tmp_path: Path, change: dict[str, object]
    ):
        manifest = check_archive(made).manifest
        bad = AgentManifest.model_construct(**{**dict(manifest), **change})
        data = encode(bad)
        if "unknown" in change:
            data = data[:-1] + b',"unknown":1}'
        assert "manifest" in refused(_with_manifest(data), tmp_path)

    def test_where_the_manifest_is_written_otherwise(self, made: Path, tmp_path: Path):
        data = encode(check_archive(made).manifest).replace(b'"format":1', b'"format": 1')
        assert "one form" in refused(_with_manifest(data), tmp_path)

    def test_where_the_manifest_has_no_end(self, tmp_path: Path):
        assert "too long" in refused(_with_manifest(b"[" * (wheelhouse.MAX_MANIFEST_BYTES + 1)), tmp_path)
        assert "manifest is none" in refused(_with_manifest(b"[" * 100_000), tmp_path)

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
    )
    def test_where_a_member_is_no_plain_file(self, made: Path, tmp_path: Path, kind: bytes):
        data = made.read_bytes()
        end = 512 + -(-int(data[124:135], 8) // 512) * 512
        header = bytearray(data[end : end + 512])
        header[156:157] = kind
        assert "not the member" in refused(data[:end] + bytes(header) + data[end + 512 :], tmp_path)

    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    def test_what_another_tar_wrote_of_the_same_members(self, made: Path, tmp_path: Path, form: int):
        out = io.BytesIO()
        with tarfile.open(made) as read, tarfile.open(fileobj=out, mode="w", format=form) as write:
            for member in read.getmembers():
                member.pax_headers = {"comment": "x"}
                write.addfile(member, read.extractfile(member))
        refused(out.getvalue(), tmp_path)

    def test_a_fifo_a_directory_or_nothing(self, tmp_path: Path):
        os.mkfifo(tmp_path / "fifo")
        for name in ("fifo", "", "missing"):
            with pytest.raises(AgentArchiveError):
                check_archive(tmp_path / name)

    def test_what_is_larger_than_any_archive_before_it_is_read(self, tmp_path: Path):
        with (tmp_path / "large.tar").open("wb") as stream:
            stream.truncate(2**31)
        with pytest.raises(AgentArchiveError, match="larger than an archive may be"):
            check_archive(tmp_path / "large.tar")


def _with_manifest(manifest: bytes) -> bytes:
    header = wheelhouse._header("manifest.json", len(manifest))
    return header + manifest + bytes(-len(manifest) % 512) + bytes(1024)


class TestPacking:
    def test_needs_exactly_one_wheel_of_edgeslm(self, tmp_path: Path):
        for wheels in (
            [make_wheel(tmp_path, "1.0", name="other")],
            [make_wheel(tmp_path, version) for version in ("1.0.0", "1.1.0")],
        ):
            with pytest.raises(AgentArchiveError, match="wheels of edgeslm, and not one"):
                write_archive(wheels, tmp_path / "out.tar")
        assert not list(tmp_path.glob("*.tar*"))

    def test_refuses_what_is_no_wheel(self, tmp_path: Path):
        bad = tmp_path / "other-1.0-py3-none-any.whl"
        bad.write_bytes(b"PK no")
        with pytest.raises(AgentArchiveError, match="is no wheel"):
            write_archive([make_wheel(tmp_path, "1.0.0"), bad], tmp_path / "out.tar")

    def test_refuses_wheels_that_run_nowhere_together(self, tmp_path: Path):
        wheels = [make_wheel(tmp_path, "1.0.0")]
        wheels += [
            make_wheel(tmp_path, "1.0", name=name, tag=f"cp311-cp311-manylinux_2_17_{name}")
            for name in ("aarch64", "x86_64")
        ]
        with pytest.raises(AgentArchiveError, match="is for x86_64, and others are for aarch64"):
            write_archive(wheels, tmp_path / "out.tar")

    def test_says_what_the_wheels_run_on(self, tmp_path: Path):
        _, found = make_archive(tmp_path, "1.0.0", tag="cp311-abi3-manylinux_2_28_aarch64")
        assert found.manifest.requires == AgentRequirements(
            pythons=tuple(f"3.{minor}" for minor in range(11, 20)), machine="aarch64", glibc="2.28"
        )
