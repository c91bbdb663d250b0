"""Images as vendors make them, prepared: whole and read back, alike each time, or refused by name with nothing left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.flash_rig import BOOT_MIB, MIB, ImageParts, a_claim, debian, small_agent, small_image
from edgeslm.errors import (
    AgentArchiveError,
    EdgeslmError,
    FirstBootUnknownError,
    FitError,
    ImageDigestError,
    ImageSourceError,
    PartitionError,
    PrepareError,
    TreeFullError,
)
from edgeslm.flash.bytecode import compiler_of
from edgeslm.flash.image.bmap import read_bmap
from edgeslm.flash.image.image import open_image
from edgeslm.flash.image.tools import find_tool
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.manifest import InstalledPayload
from edgeslm.flash.prepare import (
    PersonalRequest,
    PrepareRequest,
    board_host_name,
    personalise,
    prepare,
    read_record,
    record_path,
)
from edgeslm.flash.profiles import load_profile
from edgeslm.power.boards import choose_board
from edgeslm.schema.customisation import Account, Customisation
from edgeslm.schema.enrol import Claim
from edgeslm.schema.profile import Profile

BOOT_AT, ROOT_AT = 1 * MIB, (1 + BOOT_MIB) * MIB
CLOUD_INIT = {
    **debian(),
    "usr/lib/systemd/system/cloud-init-local.service": b"",
    "usr/sbin/netplan": b"",
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": b"datasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware\n",
}
RENAMED = debian()["etc/os-release"].replace(b"Debian GNU/Linux 13 (trixie)", b"Replayed")
Make = Callable[..., PrepareRequest]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stock")
    return small_image(directory / "stock.img", directory / "work")


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="session")
def claim() -> Claim:
    return a_claim()


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile("default", None).profile


@pytest.fixture
def make(stock: Path, agent: Path, claim: Claim, profile: Profile, tmp_path: Path) -> Make:
    """A request that can be carried out, but for what is said otherwise."""

    def request(**changes: object) -> PrepareRequest:
        plain = PrepareRequest(
            image=stock,
            out=tmp_path / "sd.img",
            board=choose_board("qemu-virt", None),
            profile=profile,
            needs=(),
            cache=tmp_path / "cache",
            claim=claim,
            archive=agent,
            customisation=Customisation(hostname="porch"),
        )
        return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]

    return request


def inside(image: Path, path: str, *, in_boot: bool = False) -> bytes:
    with open_image(image) as opened:
        tree = opened.boot if in_boot else opened.root
        assert tree is not None
        return tree.read(path, max_bytes=2**20)


def nothing_is_left(out: Path) -> None:
    left = [path.name for path in out.parent.iterdir() if path.name.startswith((out.name, ".partial-"))]
    assert left == []


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_replay(image: Path, work: Path, path: str, content: bytes) -> None:
    """Leave in the journal of an image's root that the first block of a file holds something else."""
    alone, said, script = work / "alone", work / "said", work / "script"
    with image.open("rb") as disk:
        disk.seek(ROOT_AT)
        alone.write_bytes(disk.read(disk_root_bytes(image)))

    def debugfs(*words: str | Path) -> str:
        return subprocess.run(
            [find_tool("debugfs"), *words, alone], check=True, capture_output=True, text=True
        ).stdout

    block_bytes = int(debugfs("-R", "stats").partition("Block size:")[2].split()[0])
    said.write_bytes(content.ljust(block_bytes, b"\n"))
    block = debugfs("-R", f"blocks {path}").split()[0]
    script.write_text(f"jo\njw -b {block} {said}\njc\n")
    debugfs("-w", "-f", script)
    with image.open("r+b") as disk:
        disk.seek(ROOT_AT)
        disk.write(alone.read_bytes())
    for each in (alone, said, script):
        each.unlink()


def disk_root_bytes(image: Path) -> int:
    with open_image(image) as opened:
        assert opened.root_partition.start_bytes == ROOT_AT
        return opened.root_partition.size_bytes


class TestAPreparedImage:
    def test_holds_agent_settings_claim_and_service(self, make: Make, claim: Claim):
        made = prepare(make())
        out = make().out
        assert json.loads(inside(out, layout.CLAIM))["secret"] == claim.secret
        assert b"builtin:home-command" in inside(out, layout.SETTINGS)
        assert b"ExecStart=/usr/bin/python3.13 /opt/edgeslm/launch.py" in inside(out, layout.UNIT)
        assert inside(out, "/etc/hostname") == b"porch\n"
        with open_image(out) as image:
            link = image.root.stat(layout.UNIT_LINK)
            held = image.root.stat(layout.CLAIM)
            current = image.root.stat(layout.CURRENT)
            python = image.root.stat(f"{layout.CURRENT}/bin/python3")
        assert link is not None
        assert link.target == layout.UNIT_LINK_TARGET
        assert held is not None
        assert (held.mode, held.uid, held.gid) == (0o600, 0, 0)
        assert current is not None
        assert current.target.startswith("versions/")
        assert python is not None
        assert python.target == "/usr/bin/python3.13"
        assert made.record.device == "porch"

    def test_has_file_systems_without_a_fault(self, make: Make, tmp_path: Path):
        request = make()
        prepare(request)
        subprocess.run(["e2fsck", "-fn", f"{request.out}?offset={ROOT_AT}"], check=True, capture_output=True)
        boot = tmp_path / "boot"
        boot.write_bytes(request.out.read_bytes()[BOOT_AT : BOOT_AT + BOOT_MIB * MIB])
        subprocess.run(["fsck.vfat", "-n", boot], check=True, capture_output=True)

    def test_has_the_same_bytes_each_time(self, make: Make, tmp_path: Path):
        first = prepare(make()).record
        (tmp_path / "later").mkdir()
        time.sleep(1.1)  # the clock has gone on by what file systems stamp
        second = prepare(make(out=tmp_path / "later" / "sd.img")).record
        assert first == second
        assert digest(tmp_path / "sd.img") == digest(tmp_path / "later" / "sd.img") == first.sha256
        for ending in (".json", ".bmap", ".sha256"):
            one, other = (tmp_path / place / f"sd.img{ending}" for place in (".", "later"))
            assert one.read_bytes() == other.read_bytes()

    def test_differs_from_that_of_another_device_in_what_is_its_own_alone(self, make: Make, tmp_path: Path):
        one, other = tmp_path / "sd.img", tmp_path / "other.img"
        prepare(make())
        prepare(make(out=other, claim=a_claim("attic"), customisation=Customisation(hostname="attic")))
        with open_image(one) as first, open_image(other) as second:
            differing = {path for path in everything(first) if node(first, path) != node(second, path)}
            assert set(everything(first)) == set(everything(second))
        assert differing == {
            *("/etc/hostname", "/etc/hosts", layout.CLAIM, layout.MANIFEST, layout.PERSONAL),
        }

    def test_is_readable_by_its_owner_alone(self, make: Make):
        request = make()
        prepare(request)
        assert request.out.stat().st_mode & 0o777 == 0o600
        assert request.image.stat().st_mode & 0o044

    def test_comes_with_a_block_map_a_digest_and_a_record(self, make: Make):
        request = make()
        made = prepare(request).record
        block_map = read_bmap(Path(f"{request.out}.bmap").read_bytes())
        assert block_map.image_bytes == made.size_bytes == request.out.stat().st_size
        assert block_map.mapped_blocks * block_map.block_bytes == made.mapped_bytes < made.size_bytes
        subprocess.run(["sha256sum", "-c", f"{request.out.name}.sha256"], cwd=request.out.parent, check=True)
        assert read_record(request.out) == made
        assert (made.source.sha256, made.source.raw_sha256) == (None, None)

    def test_says_what_it_was_made_of_where_that_was_compared(self, make: Make):
        stock = digest(make().image)
        made = prepare(make(sha256=stock)).record
        assert (made.source.sha256, made.source.raw_sha256) == (stock, stock)

    def test_has_no_secret_in_its_record(self, make: Make, claim: Claim):
        hashed = "$6$saltsalt$" + "x" * 86
        request = make(
            customisation=Customisation(hostname="porch", account=Account(name="anna", password_hash=hashed))
        )
        prepare(request)
        said = record_path(request.out).read_text("utf-8")
        assert claim.secret not in said
        assert hashed not in said
        assert claim.claim in said

    def test_lists_in_its_manifest_what_was_put_there(self, make: Make):
        request = make()
        made = prepare(request).record
        manifest = InstalledPayload.model_validate_json(inside(request.out, layout.MANIFEST))
        assert (manifest.fleet, manifest.device, manifest.profile) == ("green", "porch", "default")
        assert manifest.first_boot == made.first_boot
        with open_image(request.out) as image:
            for file in manifest.files:
                assert image.root.stat(file.path) is not None
                if file.sha256 is not None and file.kind == "file":
                    found = image.root.read(file.path, max_bytes=2**20)
                    assert hashlib.sha256(found).hexdigest() == file.sha256

    def test_leaves_the_image_that_it_is_made_of_as_it_is(self, make: Make):
        request = make()
        before = digest(request.image)
        prepare(request)
        assert digest(request.image) == before

    def test_grows_to_what_its_updates_need(self, make: Make):
        request = make()
        made = prepare(request).record
        assert made.size_bytes > request.image.stat().st_size
        assert made.root_free_bytes > 400 * MIB

    def test_is_as_long_as_it_was_asked_to_be(self, make: Make):
        made = prepare(make(image_bytes=2 * 2**30)).record
        assert made.size_bytes == 2 * 2**30
        assert made.root_free_bytes > 1.5 * 2**30

    def test_takes_the_place_of_an_older_one_as_a_whole(self, make: Make):
        request = make()
        request.out.write_bytes(b"older")
        made = prepare(request).record
        assert digest(request.out) == made.sha256

    @pytest.mark.parametrize("label", ["dos", "gpt"])
    def test_is_made_of_either_kind_of_partition_table(self, make: Make, tmp_path: Path, label: str):
        image = small_image(tmp_path / "stock.img", tmp_path / "work", ImageParts(label=label))
        made = prepare(make(image=image)).record
        with open_image(tmp_path / "sd.img") as opened:
            assert opened.table.partitions[-1].end_bytes <= made.size_bytes

    def test_is_told_by_cloud_init_on_its_boot_partition(self, make: Make, tmp_path: Path):
        image = small_image(tmp_path / "stock.img", tmp_path / "work", ImageParts(root=CLOUD_INIT))
        made = prepare(make(image=image)).record
        seed = inside(tmp_path / "sd.img", "/user-data", in_boot=True)
        assert b"hostname: porch" in seed
        assert any(word.startswith("ds=nocloud;i=edgeslm-") for word in made.cmdline)
        line = inside(tmp_path / "sd.img", "/cmdline.txt", in_boot=True).decode()
        assert all(word in line.split() for word in made.cmdline)

    def test_stays_as_it_is_where_there_is_nothing_to_tell_it(self, make: Make):
        made = prepare(make(customisation=Customisation())).record
        assert made.first_boot is None
        assert inside(make().out, "/etc/hostname") == b"board\n"

    @pytest.mark.parametrize("form", ["xz", "gz", "zst"])
    def test_is_made_of_a_compressed_one(self, make: Make, stock: Path, tmp_path: Path, form: str):
        packed = tmp_path / f"stock.img.{form}"
        pack(stock, packed)
        made = prepare(make(image=packed, sha256=digest(packed))).record
        assert made.source.form == form
        assert (made.source.sha256, made.source.raw_sha256) == (digest(packed), digest(stock))

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_is_made_of_a_system_that_lost_its_power(
        self, make: Make, stock: Path, tmp_path: Path, dry_run: bool
    ):
        dirty = tmp_path / "dirty.img"
        shutil.copyfile(stock, dirty)
        # What it is called by now is in its journal alone.
        to_replay(dirty, tmp_path, "/etc/os-release", RENAMED)
        before = digest(dirty)
        made = prepare(make(image=dirty), dry_run=dry_run).record
        assert made.system.name == "Replayed"
        assert digest(dirty) == before
        if not dry_run:
            assert b"Replayed" in inside(make().out, "/etc/os-release")
            with open_image(make().out) as image:
                image.check()

    def test_comes_with_its_modules_compiled_where_there_is_such_a_python(self, make: Make, tmp_path: Path):
        made = prepare(make())
        version = made.record.system.python
        with open_image(make().out) as image:
            versions = f"{layout.VERSIONS}/{image.root.names(layout.VERSIONS)[0]}"
            names = image.root.names(f"{versions}/lib/python{version}/site-packages/edgeslm/agent")
        assert ("__pycache__" in names) is (compiler_of(version) is not None)
        assert any("compile" in remark for remark in made.remarks) is (compiler_of(version) is None)

    def test_is_made_without_a_python_to_compile_with(self, make: Make, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("edgeslm.flash.prepare.work.compiler_of", lambda version: None)
        (remark,) = prepare(make()).remarks
        assert "no Python 3.13 is on this machine to compile the agent with" in remark

    def test_is_only_thought_of_in_a_dry_run(self, make: Make):
        request = make()
        made = prepare(request, dry_run=True)
        assert made.report.fits
        assert made.record.payload_files > 10
        nothing_is_left(request.out)


class TestIsRefused:
    def refused(self, request: PrepareRequest, kind: type[EdgeslmError]) -> EdgeslmError:
        with pytest.raises(kind) as found:
            prepare(request)
        assert found.value.hint, found.value
        nothing_is_left(request.out)
        return found.value

    def test_an_image_that_is_cut_short(self, make: Make, stock: Path, tmp_path: Path):
        packed = tmp_path / "stock.img.xz"
        pack(stock, packed)
        packed.write_bytes(packed.read_bytes()[:-1000])
        error = self.refused(make(image=packed), ImageSourceError)
        assert "cut short" in str(error)

    def test_a_raw_image_that_is_cut_short(self, make: Make, stock: Path, tmp_path: Path):
        cut = tmp_path / "cut.img"
        cut.write_bytes(stock.read_bytes()[: ROOT_AT + 8 * MIB])
        self.refused(make(image=cut), PartitionError)

    def test_an_image_with_another_digest(self, make: Make):
        error = self.refused(make(sha256="0" * 64), ImageDigestError)
        assert "was to have " + "0" * 64 in str(error)

    def test_an_image_that_the_digest_beside_it_does_not_know(self, make: Make, stock: Path, tmp_path: Path):
        image = Path(shutil.copy(stock, tmp_path / "stock.img"))
        Path(f"{image}.sha256").write_text(f"{'1' * 64}  stock.img\n", "utf-8")
        self.refused(make(image=image), ImageDigestError)

    def test_partitions_that_are_not_known(self, make: Make, tmp_path: Path):
        image = tmp_path / "stock.img"
        image.write_bytes(os.urandom(4096) + bytes(8 * MIB))
        self.refused(make(image=image), PartitionError)

    def test_an_image_without_a_root_that_is_known(self, make: Make, stock: Path, tmp_path: Path):
        image = Path(shutil.copy(stock, tmp_path / "stock.img"))
        with image.open("r+b") as stream:
            stream.seek(ROOT_AT)
            stream.write(bytes(2**20))
        error = self.refused(make(image=image), PartitionError)
        assert "ext4" in str(error)

    def test_a_full_root_that_cannot_grow(self, make: Make, tmp_path: Path):
        parts = ImageParts(
            root={**debian(), "usr/share/filling": os.urandom(24 * MIB)}, root_mib=28, behind_mib=4
        )
        image = small_image(tmp_path / "stock.img", tmp_path / "work", parts)
        error = self.refused(make(image=image, archive=a_large_agent(tmp_path)), TreeFullError)
        assert "cannot grow" in str(error)

    def test_an_image_of_another_architecture(self, make: Make, tmp_path: Path):
        parts = ImageParts(root=debian(machine=62, triplet="x86_64"))
        image = small_image(tmp_path / "stock.img", tmp_path / "work", parts)
        error = self.refused(make(image=image), FitError)
        assert "the image is for x86_64, the board is aarch64" in str(error)

    def test_an_image_without_python(self, make: Make, tmp_path: Path):
        root = {name: data for name, data in debian().items() if "python" not in name}
        image = small_image(tmp_path / "stock.img", tmp_path / "work", ImageParts(root=root, links={}))
        assert "no Python 3" in str(self.refused(make(image=image), FitError))

    def test_an_image_whose_way_of_being_told_is_not_known(self, make: Make, tmp_path: Path):
        release = b'PRETTY_NAME="Other Linux 9"\nID=other\n'
        parts = ImageParts(root={**debian(), "etc/os-release": release})
        image = small_image(tmp_path / "stock.img", tmp_path / "work", parts)
        error = self.refused(make(image=image), FirstBootUnknownError)
        assert "Other Linux 9" in str(error)

    def test_an_image_that_was_prepared_already(self, make: Make, tmp_path: Path):
        prepare(make())
        error = self.refused(make(image=tmp_path / "sd.img", out=tmp_path / "again.img"), PrepareError)
        assert "profile default" in str(error)

    def test_an_agent_for_other_boards(self, make: Make, tmp_path: Path):
        other = small_agent(tmp_path, tag="cp311-cp311-manylinux_2_17_aarch64")
        error = self.refused(make(archive=other), PrepareError)
        assert "3.11" in str(error)

    def test_an_agent_that_is_none(self, make: Make, tmp_path: Path):
        (tmp_path / "agent.tar").write_bytes(b"no archive")
        with pytest.raises(AgentArchiveError):
            prepare(make(archive=tmp_path / "agent.tar"))
        nothing_is_left(make().out)

    def test_a_card_that_is_too_small(self, make: Make):
        error = self.refused(make(card_bytes=128 * 10**6), FitError)
        assert "storage" in str(error)

    def test_a_place_where_another_process_makes_the_same(self, make: Make, tmp_path: Path):
        with subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path / "sd.img")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            with pytest.raises(PrepareError, match="by another process"):
                prepare(make())
            other.communicate(b"\n")
        prepare(make())


HOLDS = """
import sys
from pathlib import Path
from edgeslm.flash.prepare.workplace import workplace
with workplace(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.readline()
"""
CUT = """
import os, pickle, signal, sys
from pathlib import Path
from edgeslm.flash.prepare import prepare
request, what = pickle.load(sys.stdin.buffer)
def stage(said, done, total):
    if said.startswith(what):
        os.kill(os.getpid(), signal.SIGKILL)
prepare(request, stage=stage)
"""


class TestCutOff:
    @pytest.mark.parametrize(
        "what",
        [
            "laying out",
            "checking the file",
            *(pytest.param(what, marks=pytest.mark.nightly) for what in ("unpacking", "writing", "hashing")),
        ],
    )
    def test_it_leaves_no_image_and_the_next_run_clears_up(self, make: Make, what: str):
        import pickle  # noqa: PLC0415

        request = make()
        done = subprocess.run(
            [sys.executable, "-c", CUT], input=pickle.dumps((request, what)), check=False, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not request.out.exists()
        assert prepare(request).record.sha256 == digest(request.out)
        assert not list(request.out.parent.glob(".partial-*"))

    def test_by_an_error_it_leaves_the_older_image_as_it_was(self, make: Make):
        request = make(sha256="0" * 64)
        request.out.write_bytes(b"older")
        with pytest.raises(ImageDigestError):
            prepare(request)
        assert request.out.read_bytes() == b"older"


class TestPersonalised:
    def test_an_image_is_the_same_as_one_prepared_for_that_device(self, make: Make, tmp_path: Path):
        attic = a_claim("attic")
        prepare(make())
        made = personalise(tmp_path / "sd.img", tmp_path / "attic.img", PersonalRequest(claim=attic))
        alike = prepare(
            make(out=tmp_path / "alike.img", claim=attic, customisation=Customisation(hostname="attic"))
        )
        with open_image(tmp_path / "attic.img") as one, open_image(tmp_path / "alike.img") as other:
            assert {path: node(one, path) for path in everything(one)} == {
                path: node(other, path) for path in everything(other)
            }
        names = {"image", "sha256"}
        assert made.model_dump(exclude=names) == alike.record.model_dump(exclude=names)
        assert read_record(tmp_path / "attic.img") == made
        assert digest(tmp_path / "attic.img") == made.sha256
        block_map = read_bmap((tmp_path / "attic.img.bmap").read_bytes())
        assert block_map.mapped_blocks * block_map.block_bytes == made.mapped_bytes

    def test_twice_for_the_same_device_an_image_has_the_same_bytes(self, make: Make, tmp_path: Path):
        prepare(make(claim=None, for_many=True, customisation=Customisation(hostname="unnamed")))
        attic = PersonalRequest(claim=a_claim("attic"))
        made = [
            personalise(tmp_path / "sd.img", tmp_path / name, attic).sha256 for name in ("1.img", "2.img")
        ]
        assert made[0] == made[1]

    def test_the_image_that_it_is_made_of_stays(self, make: Make, tmp_path: Path):
        before = prepare(make()).record.sha256
        personalise(tmp_path / "sd.img", tmp_path / "attic.img", PersonalRequest(claim=a_claim("attic")))
        assert digest(tmp_path / "sd.img") == before

    def test_a_host_name_told_by_cloud_init_changes_with_its_instance(self, make: Make, tmp_path: Path):
        image = small_image(tmp_path / "stock.img", tmp_path / "work", ImageParts(root=CLOUD_INIT))
        before = prepare(make(image=image)).record
        made = personalise(
            tmp_path / "sd.img", tmp_path / "attic.img", PersonalRequest(claim=a_claim("attic"))
        )
        assert b"hostname: attic" in inside(tmp_path / "attic.img", "/user-data", in_boot=True)
        line = inside(tmp_path / "attic.img", "/cmdline.txt", in_boot=True).decode().split()
        assert set(made.cmdline) != set(before.cmdline)
        assert set(made.cmdline) <= set(line)
        assert not set(before.cmdline) - set(made.cmdline) & set(line)

    def test_a_device_without_a_claim_gets_another_name(self, make: Make, tmp_path: Path):
        prepare(make(claim=None, device="porch"))
        made = personalise(tmp_path / "sd.img", tmp_path / "attic.img", PersonalRequest(device="attic"))
        assert b"\ndevice: attic\n" in inside(tmp_path / "attic.img", layout.SETTINGS)
        assert (made.device, made.hostname, made.claim) == ("attic", "attic", None)

    def test_a_claim_does_not_go_into_an_image_for_devices_without_one(self, make: Make, tmp_path: Path):
        prepare(make(claim=None, device="porch"))
        with pytest.raises(PrepareError, match="without a claim"):
            personalise(tmp_path / "sd.img", tmp_path / "x.img", PersonalRequest(claim=a_claim("attic")))
        nothing_is_left(tmp_path / "x.img")

    def test_a_name_alone_does_not_go_into_an_image_for_devices_with_a_claim(
        self, make: Make, tmp_path: Path
    ):
        prepare(make())
        with pytest.raises(PrepareError, match="with a claim"):
            personalise(tmp_path / "sd.img", tmp_path / "x.img", PersonalRequest(device="attic"))
        nothing_is_left(tmp_path / "x.img")

    def test_an_image_that_was_not_prepared_is_refused(self, stock: Path, tmp_path: Path):
        with pytest.raises(PrepareError, match="cannot be read"):
            personalise(stock, tmp_path / "x.img", PersonalRequest(claim=a_claim("attic")))
        nothing_is_left(tmp_path / "x.img")

    def test_a_host_name_that_is_none_is_refused(self, make: Make, tmp_path: Path):
        prepare(make())
        with pytest.raises(PrepareError, match="host name"):
            personalise(
                tmp_path / "sd.img",
                tmp_path / "x.img",
                PersonalRequest(claim=a_claim("attic"), hostname="a b"),
            )
        nothing_is_left(tmp_path / "x.img")


@pytest.mark.parametrize(
    ("device", "name"), [("porch", "porch"), ("-a-", "a"), ("a" * 64, "a" * 63), ("--", None)]
)
def test_a_device_lends_its_name_to_its_board(device: str, name: str | None):
    assert board_host_name(device) == name


# --- looking ------------------------------------------------------------------------------------------------


def everything(image: object, path: str = "/") -> list[str]:
    root = image.root  # type: ignore[attr-defined]
    found = []
    for name in root.names(path):
        below = f"{path.rstrip('/')}/{name}"
        found.append(below)
        if root.stat(below).kind == "directory" and name != "lost+found":
            found += everything(image, below)
    return found


def node(image: object, path: str) -> object:
    root = image.root  # type: ignore[attr-defined]
    found = root.stat(path)
    return found, root.read(path, max_bytes=2**26) if found.kind == "file" else b""


def pack(raw: Path, packed: Path) -> None:
    data = raw.read_bytes()
    match packed.suffix:
        case ".xz":
            packed.write_bytes(lzma.compress(data, preset=0))
        case ".gz":
            subprocess.run(["gzip", "-1", "-c", raw], stdout=packed.open("wb"), check=True)
        case _:
            import zstandard  # noqa: PLC0415

            packed.write_bytes(zstandard.ZstdCompressor(level=1).compress(data))


def a_large_agent(directory: Path) -> Path:
    from benchmarks.agent_update_rig import make_wheel  # noqa: PLC0415
    from edgeslm.agent import launcher  # noqa: PLC0415
    from edgeslm.wheelhouse import write_archive  # noqa: PLC0415

    wheel = make_wheel(
        directory / "wheels", "0.1.0",
        files={
            "edgeslm/agent/launcher.py": Path(launcher.__file__).read_text("utf-8"),
            "edgeslm/_packages/home-command.slm": "a model\n",
            "edgeslm/large.txt": "x" * 12 * MIB,
        },
    )  # fmt: skip
    write_archive([wheel], directory / "large.tar")
    return directory / "large.tar"
