"""``edgeslm flash prepare`` as somebody types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.flash_rig import a_claim, small_agent, small_image
from edgeslm import codec
from edgeslm.cli.flash import flash
from edgeslm.flash.image.image import open_image
from edgeslm.flash.payload import layout
from edgeslm.flash.prepare import read_record

PROFILE = "name: porch\ntitle: A porch\nextends: default\n"
WIFI = "network: {wifi: {ssid: garden, country: DE, password: 'env:GARDEN_WIFI'}}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock image, an agent and a claim."""
    directory = tmp_path_factory.mktemp("prepare")
    small_image(directory / "stock.img", directory / "work")
    small_agent(directory).rename(directory / "agent.tar")
    (directory / "claim.json").write_bytes(codec.encode(a_claim()))
    return directory


def run(place: Path, *words: str, **environment: str) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    here = ("--board", "qemu-virt", "--image", str(place / "stock.img"), "--agent", str(place / "agent.tar"))
    return CliRunner(env={**clean, **environment}).invoke(flash, ["prepare", *here, *words])


def in_root(image: Path, path: str) -> str:
    with open_image(image) as opened:
        return opened.root.read(path, max_bytes=2**20).decode()


class TestMakes:
    def test_an_image_for_the_device_of_a_claim(self, place: Path, tmp_path: Path):
        done = run(place, "--claim", str(place / "claim.json"), "--out", str(tmp_path / "sd.img"))
        assert done.exit_code == 0, done.stderr
        assert "device     porch of the fleet green" in done.stdout
        assert "write it with: edgeslm flash write" in done.stdout
        assert "It holds a claim" in done.stderr
        assert in_root(tmp_path / "sd.img", "/etc/hostname") == "porch\n"

    def test_one_json_object_that_says_what_it_is(self, place: Path, tmp_path: Path):
        out = tmp_path / "sd.img"
        done = run(place, "--claim", str(place / "claim.json"), "--out", str(out), "--json")
        said = json.loads(done.stdout)
        record = read_record(out)
        assert (said["sha256"], said["device"], said["written"]) == (record.sha256, "porch", True)
        assert said["out"] == str(out)
        assert "unpacking" in done.stderr

    def test_nothing_in_a_dry_run(self, place: Path, tmp_path: Path):
        done = run(place, "--device", "porch", "--out", str(tmp_path / "sd.img"), "--dry-run", "--json")
        said = json.loads(done.stdout)
        assert said["written"] is False
        assert "sha256" not in said
        assert list(tmp_path.iterdir()) == []

    def test_an_image_that_is_told_of_its_user(self, place: Path, tmp_path: Path):
        (tmp_path / "password").write_text("correct horse\n", "utf-8")
        out = tmp_path / "sd.img"
        done = run(
            place, "--claim", str(place / "claim.json"), "--out", str(out), "--hostname", "gate", "--user", "anna",
            "--password-file", str(tmp_path / "password"),
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert in_root(out, "/etc/hostname") == "gate\n"
        assert "anna:x:1000:" in in_root(out, "/etc/passwd")
        assert (
            "correct horse" not in (tmp_path / "sd.img.json").read_text("utf-8") + done.stdout + done.stderr
        )

    def test_an_image_that_keeps_its_host_name(self, place: Path, tmp_path: Path):
        out = tmp_path / "sd.img"
        run(place, "--device", "porch", "--out", str(out), "--keep-hostname")
        assert in_root(out, "/etc/hostname") == "board\n"
        assert read_record(out).hostname is None

    def test_an_image_for_many_cards(self, place: Path, tmp_path: Path):
        out = tmp_path / "sd.img"
        done = run(place, "--for-many", "--out", str(out))
        assert done.exit_code == 0, done.stderr
        assert read_record(out).device is None
        assert "device:" not in in_root(out, layout.SETTINGS)
        assert "claim" not in done.stderr

    def test_an_image_over_an_older_one_where_that_is_meant(self, place: Path, tmp_path: Path):
        out = tmp_path / "sd.img"
        out.write_bytes(b"older")
        words = ("--device", "porch", "--out", str(out))
        refused = run(place, *words)
        assert refused.exit_code == 2
        assert out.read_bytes() == b"older"
        assert run(place, *words, "--force").exit_code == 0


class TestRefuses:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "the device needs a name"),
            (("--device", "porch", "--for-many"), "exclude each other"),
            (("--device", "porch", "--hostname", "a", "--keep-hostname"), "exclude each other"),
            (("--device", "porch", "--sha256", "abc"), "is no SHA-256"),
            (("--device", "porch", "--wifi", "garden"), "--wifi-country"),
            (("--device", "porch", "--timezone", "Nowhere/Else"), "has no time zones"),
            (("--device", "porch", "--size", "64M"), "the image has 66 MB"),
            (("--device", "porch", "--model", "nowhere.slm"), "nowhere.slm"),
        ],
    )
    def test_what_makes_no_sense_and_leaves_nothing(
        self, place: Path, tmp_path: Path, words: tuple[str, ...], said: str
    ):
        done = run(place, *words, "--out", str(tmp_path / "sd.img"))
        assert done.exit_code in {1, 2, 4}
        assert said in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_claim_that_has_expired(self, place: Path, tmp_path: Path):
        (tmp_path / "old.json").write_bytes(codec.encode(a_claim(days=-1)))
        done = run(place, "--claim", str(tmp_path / "old.json"), "--out", str(tmp_path / "sd.img"))
        assert done.exit_code == 2
        assert "expired" in done.stderr
        assert "edgeslm fleet claim" in done.stderr

    def test_the_image_that_it_reads_as_its_result(self, place: Path):
        image = place / "stock.img"
        before = image.read_bytes()
        done = run(place, "--device", "porch", "--out", str(image), "--force")
        assert done.exit_code == 2
        assert image.read_bytes() == before

    def test_rules_that_are_none(self, place: Path, tmp_path: Path):
        (tmp_path / "rules.yaml").write_text("rules: [{name: A}]\n", "utf-8")
        done = run(
            place, "--device", "porch", "--rules", str(tmp_path / "rules.yaml"), "--out", str(tmp_path / "sd.img")
        )  # fmt: skip
        assert done.exit_code != 0
        assert "rules.yaml" in done.stderr
        assert not (tmp_path / "sd.img").exists()


def test_where_the_extra_is_missing_it_says_how_to_install_it(place: Path, tmp_path: Path):
    program = "import sys; sys.modules['zstandard'] = None; from edgeslm.cli.main import main; main()"
    words = (
        "flash",
        "prepare",
        "--board",
        "qemu-virt",
        "--image",
        str(place / "stock.img"),
        "--device",
        "porch",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--out", str(tmp_path / "sd.img")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'edgeslm[flash]'" in done.stderr
    assert "Traceback" not in done.stderr


class TestAProfile:
    def test_brings_a_wireless_network_whose_passphrase_lies_elsewhere(self, place: Path, tmp_path: Path):
        (tmp_path / "porch.yaml").write_text(PROFILE + WIFI, "utf-8")
        words = (
            "--device", "porch", "--profile", "porch", "--profiles-dir", str(tmp_path),
            "--out", str(tmp_path / "sd.img"),
        )  # fmt: skip
        refused = run(place, *words)
        assert "GARDEN_WIFI, which is not set" in refused.stderr
        # The small image has nothing that could join a wireless network.
        unable = run(place, *words, "--board", "pi-4b", GARDEN_WIFI="correct horse")
        assert "--wifi" in unable.stderr
        assert "correct horse" not in unable.stderr

    def test_says_what_it_sets(self, place: Path, tmp_path: Path):
        (tmp_path / "porch.yaml").write_text(PROFILE + "leds: false\n", "utf-8")
        done = run(
            place, "--device", "porch", "--profile", "porch", "--profiles-dir", str(tmp_path),
            "--out", str(tmp_path / "sd.img"),
        )  # fmt: skip
        assert "sets       lights of the board off" in done.stdout

    def test_may_ask_for_a_root_that_is_only_read(self, place: Path, tmp_path: Path):
        text = "read_only_root: true\nstate_device: card\nlog: {storage: volatile}\n"
        (tmp_path / "porch.yaml").write_text(PROFILE + text, "utf-8")
        done = run(
            place, "--claim", str(place / "claim.json"), "--profile", "porch", "--profiles-dir", str(tmp_path),
            "--out", str(tmp_path / "sd.img"),
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert "root read-only from the second start on" in done.stdout
        assert "LABEL=edgeslm-state /var/lib/private/edgeslm ext4" in in_root(
            tmp_path / "sd.img", "/etc/fstab"
        )
