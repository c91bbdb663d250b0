"""A root that is only read: a partition for the agent's state, and what makes the root so after the first start."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.flash_rig import MIB, STAMP_S, ImageParts, a_claim, debian, small_agent, small_image
from edgeslm.errors import BootSettingsError, FitError, PartitionError
from edgeslm.flash.image.adding import add_ext4
from edgeslm.flash.image.ext4 import Ext4Tree
from edgeslm.flash.image.image import Image, open_image
from edgeslm.flash.payload import layout, read_only
from edgeslm.flash.prepare import PersonalRequest, PrepareRequest, personalise, prepare
from edgeslm.flash.profiles import load_profile
from edgeslm.flash.tree import Entry
from edgeslm.power.boards import choose_board
from edgeslm.schema.customisation import Customisation
from edgeslm.schema.profile import LogSettings, SwapSettings

FSTAB = "# of the image\nPARTUUID=1-02 / ext4 defaults,noatime 0 1\nPARTUUID=1-01 /boot/firmware vfat defaults 0 2\n"
Make = Callable[..., PrepareRequest]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A request for a root that is only read; `parts` say what the image is like."""

    def request(parts: ImageParts | None = None, **profile: object) -> PrepareRequest:
        image = small_image(tmp_path / "stock.img", tmp_path / "work", parts)
        sealed = load_profile("default", None).profile.model_copy(
            update={
                "read_only_root": True,
                "state_device": "card",
                "log": LogSettings(storage="volatile"),
                **profile,
            }
        )
        return PrepareRequest(
            image=image, out=tmp_path / "sd.img", board=choose_board("qemu-virt", None), profile=sealed, needs=(),
            cache=tmp_path / "cache", claim=a_claim(), archive=small_agent(tmp_path),
            customisation=Customisation(hostname="porch"),
        )  # fmt: skip

    return request


def state_of(image: Image) -> Ext4Tree:
    last = image.table.partitions[-1]
    return Ext4Tree(image.window.part(last.start_bytes, last.size_bytes))


class TestAnImage:
    @pytest.mark.parametrize("label", ["dos", "gpt"])
    def test_has_the_state_of_the_agent_in_a_partition_of_its_own(self, make: Make, label: str):
        request = make(ImageParts(label=label))
        prepare(request)
        with open_image(request.out) as image:
            assert len(image.table.partitions) == 3
            state = state_of(image)
            link = state.stat("/agent/current")
            assert link is not None
            assert state.stat(f"/agent/{link.target}/pyvenv.cfg") is not None
            assert image.root.stat(layout.STATE) is None
            where = image.root.stat(read_only.STATE_MOUNT)
            assert where is not None
            assert (
                image.root.read("/etc/fstab", max_bytes=4096)
                .decode()
                .endswith(
                    "LABEL=edgeslm-state /var/lib/private/edgeslm ext4 "
                    "noatime,nosuid,nodev,nofail,x-systemd.device-timeout=300s 0 2\n"
                )
            )
        listed = subprocess.run(
            ["sfdisk", "--verify", request.out], check=True, capture_output=True, text=True
        )
        assert "No errors detected" in listed.stdout + listed.stderr

    def test_has_three_file_systems_without_a_fault(self, make: Make):
        request = make()
        prepare(request)
        with open_image(request.out) as image:
            for partition in image.table.partitions[1:]:
                subprocess.run(
                    ["e2fsck", "-fn", f"{request.out}?offset={partition.start_bytes}"], check=True, capture_output=True
                )  # fmt: skip

    def test_has_the_same_bytes_each_time(self, make: Make, tmp_path: Path):
        request = make()
        first = prepare(request).record.sha256
        assert prepare(dataclasses.replace(request, out=tmp_path / "2.img")).record.sha256 == first

    def test_fills_the_length_that_is_asked_for_with_state(self, make: Make):
        request = dataclasses.replace(make(), image_bytes=3 * 2**30)
        assert prepare(request).record.size_bytes == 3 * 2**30
        with open_image(request.out) as image:
            assert image.table.partitions[-1].size_bytes > 2.5 * 2**30
            assert state_of(image).free_bytes() > 2 * 2**30

    def test_does_not_grow_its_root_at_the_first_start(self, make: Make):
        boot = {"cmdline.txt": b"console=tty1 root=LABEL=rootfs rootwait resize\n"}
        request = make(ImageParts(boot=boot))
        prepare(request)
        with open_image(request.out) as image:
            assert image.boot is not None
            assert b"resize" not in image.boot.read("/cmdline.txt", max_bytes=4096)

    def test_is_personalised_with_its_state_as_it_is(self, make: Make, tmp_path: Path):
        request = make()
        prepare(request)
        personalise(request.out, tmp_path / "attic.img", PersonalRequest(claim=a_claim("attic")))
        with open_image(tmp_path / "attic.img") as image:
            assert b'"attic"' in image.root.read(layout.CLAIM, max_bytes=8192)
            assert state_of(image).stat("/agent/current") is not None


class TestIsRefused:
    @pytest.mark.parametrize(
        ("profile", "key"),
        [
            ({"log": LogSettings(storage="persistent")}, "log"),
            ({"log": None}, "log"),
            ({"swap": SwapSettings(kind="file", size_mb=64)}, "swap"),
        ],
    )
    def test_with_what_has_to_be_written(self, make: Make, profile: dict[str, object], key: str):
        request = make(**profile)
        with pytest.raises(BootSettingsError) as found:
            prepare(request)
        assert (found.value.key, request.out.exists()) == (key, False)

    def test_with_a_device_that_nobody_could_fill(self, make: Make):
        with pytest.raises(FitError, match="LABEL=stick"):
            prepare(make(state_device="LABEL=stick"))

    @pytest.mark.parametrize(
        ("lacking", "said"),
        [("usr/lib/modules/6.12.1/kernel/fs/overlayfs/overlay.ko", "overlayfs"), ("etc/fstab", "fstab")],
    )
    def test_on_an_image_that_cannot(self, make: Make, lacking: str, said: str):
        root = {name: data for name, data in debian().items() if name != lacking}
        with pytest.raises(BootSettingsError, match=said):
            prepare(make(ImageParts(root=root)))

    def test_on_an_image_that_goes_on_setting_itself_up(self, make: Make):
        root = {**debian(), "etc/armbian-release": b"BOARD=x\n", "usr/lib/armbian/armbian-firstlogin": b""}
        with pytest.raises(FitError, match="the image is armbian"):
            prepare(make(ImageParts(root=root)))

    def test_where_the_table_is_full(self, make: Make):
        request = make()
        with open_image(request.image, time_s=STAMP_S) as image:
            add_ext4(image, 16 * MIB, label="one")
        with open_image(request.image, time_s=STAMP_S) as image:
            add_ext4(image, 16 * MIB, label="two")
        with (
            open_image(request.image, time_s=STAMP_S) as image,
            pytest.raises(PartitionError, match="is full"),
        ):
            add_ext4(image, 16 * MIB, label="three")


class TestTheScript:
    """The script's own work on fstab, run here with the paths of a directory."""

    @pytest.fixture
    def board(self, tmp_path: Path) -> Path:
        root = tmp_path / "board"
        (root / "etc/edgeslm").mkdir(parents=True)
        (root / "etc/fstab").write_text(read_only.fstab_with_state(FSTAB), "utf-8")
        return root

    def run(self, board: Path, how: str) -> str:
        entry = next(entry for entry in read_only.read_only_entries() if entry.path == read_only.SCRIPT)
        assert isinstance(entry.content, bytes)
        text = (
            entry.content.decode().replace(" /etc/", f" {board}/etc/").replace("mount -o remount,rw /", ":")
        )
        script = board / "root.sh"
        script.write_text(text, "utf-8")
        subprocess.run(["sh", script, how], check=True, capture_output=True, env=os.environ)
        return (board / "etc/fstab").read_text("utf-8")

    def test_makes_the_root_read_only_and_var_an_overlay(self, board: Path):
        lines = self.run(board, "read-only").splitlines()
        assert "PARTUUID=1-02 / ext4 defaults,noatime,ro 0 1" in lines
        assert "PARTUUID=1-01 /boot/firmware vfat defaults 0 2" in lines
        assert any(line.startswith("overlay /var overlay lowerdir=/var,") for line in lines)
        assert "# of the image" in lines

    def test_done_twice_is_done_once(self, board: Path):
        assert self.run(board, "read-only") == self.run(board, "read-only")

    def test_takes_it_back(self, board: Path):
        self.run(board, "read-only")
        text = self.run(board, "writable")
        assert "PARTUUID=1-02 / ext4 defaults,noatime,rw 0 1\n" in text
        assert "overlay" not in text
        assert (board / "etc/edgeslm/root-stays-writable").exists()
        self.run(board, "read-only")
        assert not (board / "etc/edgeslm/root-stays-writable").exists()

    def test_wants_to_be_told_which(self, board: Path):
        with pytest.raises(subprocess.CalledProcessError):
            self.run(board, "sideways")
        assert (board / "etc/fstab").read_text("utf-8") == read_only.fstab_with_state(FSTAB)


def test_what_belongs_to_the_state_is_told_from_what_belongs_to_the_root() -> None:
    entries = (
        Entry(layout.STATE, "directory", mode=0o755),
        Entry(f"{layout.STATE}/agent", "directory", mode=0o755),
        Entry("/var/lib/edgeslm-language", content=b"x"),
    )
    root, state = read_only.apart(entries)
    assert [entry.path for entry in root] == ["/var/lib/edgeslm-language"]
    assert [entry.path for entry in state] == ["/agent"]
