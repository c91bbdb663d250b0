"""All of a payload: the same entries each time, the service last, and no secret where others look."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.flash_rig import a_claim, small_agent
from edgeslm import codec
from edgeslm.cli.wiring import package_path
from edgeslm.errors import ClaimError, ConfigError, PrepareError
from edgeslm.flash.image.facts import read_facts
from edgeslm.flash.payload import layout
from edgeslm.flash.payload.agents import packed_agent
from edgeslm.flash.payload.claims import check_claim, read_claim
from edgeslm.flash.payload.environment import BoardPython
from edgeslm.flash.payload.gathering import Target
from edgeslm.flash.payload.manifest import InstalledPayload, described, plain_paths
from edgeslm.flash.payload.models import rule_entries
from edgeslm.flash.payload.systems import board_system
from edgeslm.flash.payload.whole import BoardSystem, Payload, PayloadRequest, build_payload
from edgeslm.flash.profiles import load_profile
from edgeslm.flash.tree import DirectoryTree, Entry
from edgeslm.power.boards import choose_board
from edgeslm.schema.config import AgentConfig
from edgeslm.schema.profile import ProfileBroker

SYSTEM = BoardSystem(BoardPython("3.13", "/usr/bin/python3.13"), "aarch64", "2.41", frozenset({"video"}))


@pytest.fixture
def request_(tmp_path: Path) -> PayloadRequest:
    """What goes onto a Raspberry Pi 4 that joins a fleet."""
    return PayloadRequest(
        archive=small_agent(tmp_path),
        system=SYSTEM,
        board=choose_board("pi-4b", None),
        profile=load_profile("default", None).profile,
        claim=a_claim(),
    )


def build(request: PayloadRequest, directory: Path) -> Payload:
    directory.mkdir()
    return build_payload(request, directory)


def content(payload: Payload, path: str) -> bytes:
    found = next(entry for entry in payload.entries if entry.path == path).content
    return found if isinstance(found, bytes) else found.read_bytes()


class TestAPayload:
    def test_starts_the_service_after_all_that_it_needs_and_ends_with_its_manifest(
        self, request_: PayloadRequest, tmp_path: Path
    ):
        paths = [entry.path for entry in build(request_, tmp_path / "bytes").entries]
        assert paths[-3:] == [layout.UNIT, layout.UNIT_LINK, layout.MANIFEST]
        assert len(set(paths)) == len(paths)

    def test_has_settings_that_the_agent_takes(self, request_: PayloadRequest, tmp_path: Path):
        said = yaml.safe_load(content(build(request_, tmp_path / "bytes"), layout.SETTINGS))
        assert AgentConfig.model_validate({"device": "porch", **said}).board == "pi-4b"
        assert "broker" not in said
        assert "device" not in said

    def test_has_its_claim_where_root_alone_reads_it(self, request_: PayloadRequest, tmp_path: Path):
        made = build(request_, tmp_path / "bytes")
        entry = next(entry for entry in made.entries if entry.path == layout.CLAIM)
        assert entry.mode == 0o600
        assert json.loads(content(made, layout.CLAIM))["device"] == "porch"
        file = next(file for file in made.manifest.files if file.path == layout.CLAIM)
        assert file.sha256 is None

    def test_that_gets_its_claim_later_is_ready_for_it(self, request_: PayloadRequest, tmp_path: Path):
        later = dataclasses.replace(request_, claim=None, claim_follows=True)
        made = build(later, tmp_path / "bytes")
        assert layout.CLAIM not in {entry.path for entry in made.entries}
        assert "device" not in yaml.safe_load(content(made, layout.SETTINGS))

    def test_without_a_claim_names_device_and_broker(self, request_: PayloadRequest, tmp_path: Path):
        (tmp_path / "password").write_text("secret words\n", "utf-8")
        broker = ProfileBroker(host="broker.lan", username="porch", password=f"file:{tmp_path / 'password'}")
        profile = request_.profile.model_copy(update={"broker": broker})
        made = build(
            dataclasses.replace(request_, claim=None, device="porch", profile=profile), tmp_path / "bytes"
        )
        said = yaml.safe_load(content(made, layout.SETTINGS))
        assert said["device"] == "porch"
        assert said["broker"]["host"] == "broker.lan"
        assert b"secret words" not in content(made, layout.SETTINGS)
        held = next(entry for entry in made.entries if entry.path == layout.BROKER_PASSWORD)
        assert (held.mode, held.content) == (0o600, b"secret words")
        assert b"broker.password:/etc/edgeslm/broker.password" in content(made, layout.UNIT)

    def test_may_ask_the_firmware_only_where_the_board_has_one_and_the_group_is_there(
        self, request_: PayloadRequest, tmp_path: Path
    ):
        pi5 = dataclasses.replace(request_, board=choose_board("pi-5", None))
        unit = content(build(pi5, tmp_path / "1"), layout.UNIT).decode()
        assert "DeviceAllow=/dev/vcio rw" in unit
        assert "SupplementaryGroups=video" in unit
        elsewhere = dataclasses.replace(request_, board=choose_board("qemu-virt", None))
        assert "/dev/vcio" not in content(build(elsewhere, tmp_path / "2"), layout.UNIT).decode()

    def test_brings_models_under_their_digest(self, request_: PayloadRequest, tmp_path: Path):
        model = package_path("builtin:home-command")
        made = build(dataclasses.replace(request_, models=(str(model),)), tmp_path / "bytes")
        file = made.models.files[0]
        assert f"{layout.MODELS}/{file.sha256}.slm" in {entry.path for entry in made.entries}
        assert yaml.safe_load(content(made, layout.SETTINGS))["models"] == [file.place]

    def test_is_the_same_each_time(self, request_: PayloadRequest, tmp_path: Path):
        one, other = (build(request_, tmp_path / name) for name in ("1", "2"))
        assert one.manifest == other.manifest
        assert one.size_bytes == other.size_bytes


class TestIsRefused:
    def test_an_agent_for_another_python(self, request_: PayloadRequest, tmp_path: Path):
        system = dataclasses.replace(SYSTEM, python=BoardPython("3.9", "/usr/bin/python3.9"))
        other = small_agent(tmp_path, tag="cp313-cp313-manylinux_2_17_aarch64")
        with pytest.raises(PrepareError, match=r"3\.13") as found:
            build(dataclasses.replace(request_, archive=other, system=system), tmp_path / "bytes")
        assert "edgeslm agent pack --machine aarch64 --python 3.9" in (found.value.hint or "")

    @pytest.mark.parametrize("reference", ["builtin:nothing", "nowhere.slm"])
    def test_a_model_that_is_not_there(self, request_: PayloadRequest, tmp_path: Path, reference: str):
        with pytest.raises(PrepareError) as found:
            build(dataclasses.replace(request_, models=(reference,)), tmp_path / "bytes")
        assert found.value.what == "models"

    def test_two_versions_of_one_model(self, request_: PayloadRequest, tmp_path: Path):
        model = package_path("builtin:home-command")
        with pytest.raises(PrepareError, match="is another package called"):
            build(dataclasses.replace(request_, models=(str(model), str(model))), tmp_path / "bytes")

    def test_two_files_of_rules_with_one_name(self, tmp_path: Path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.yaml").write_text("rules: []\n", "utf-8")
        with pytest.raises(ConfigError, match=r"x\.yaml"):
            rule_entries([tmp_path / "a", tmp_path / "b"])


class TestAClaim:
    def test_is_read_from_its_file(self, tmp_path: Path):
        claim = a_claim()
        (tmp_path / "claim.json").write_bytes(codec.encode(claim))
        assert read_claim(tmp_path / "claim.json", now=claim.expires_at.replace(year=2020)) == claim  # type: ignore[union-attr]

    @pytest.mark.parametrize("data", [b"", b"{}", b"no claim", b"x" * 70_000])
    def test_that_is_none_is_refused(self, tmp_path: Path, data: bytes):
        (tmp_path / "claim.json").write_bytes(data)
        with pytest.raises(ClaimError) as found:
            read_claim(tmp_path / "claim.json", now=a_claim().expires_at)  # type: ignore[arg-type]
        assert "edgeslm fleet claim" in (found.value.hint or "")

    def test_that_has_expired_is_refused(self):
        claim = a_claim(days=1)
        assert claim.expires_at is not None
        with pytest.raises(ClaimError, match="expired"):
            check_claim(claim, now=claim.expires_at)

    def test_of_an_authority_that_is_none_is_refused(self):
        claim = a_claim().model_copy(update={"ca": "no certificate", "expires_at": None})
        with pytest.raises(ClaimError, match="authority"):
            check_claim(claim, now=a_claim().expires_at)  # type: ignore[arg-type]


class TestAManifest:
    def test_describes_a_tree_as_one_thing(self):
        entries = (
            Entry("/var/lib/edgeslm/agent", "directory", mode=0o755),
            Entry("/var/lib/edgeslm/agent/x", content=b"1234"),
            Entry("/etc/edgeslm/agent.yaml", content=b"12"),
        )
        found = described(entries, ["/var/lib/edgeslm/agent"])
        assert [(file.path, file.kind, file.size_bytes) for file in found] == [
            ("/etc/edgeslm/agent.yaml", "file", 2),
            ("/var/lib/edgeslm/agent", "tree", 4),
        ]

    def test_on_a_board_can_say_anything_and_names_plain_paths_alone(self):
        payload = InstalledPayload.model_validate(
            {
                "edgeslm": "0.1.0",
                "archive": "0" * 64,
                "files": [{"path": path, "kind": "file"} for path in ("/etc/../root", "/etc//x", "/etc/x")],
            }
        )
        assert plain_paths(payload) == ("/etc/x",)


class TestTheSystem:
    def test_of_an_image_is_told_by_its_files(self, tmp_path: Path):
        from benchmarks.flash_rig import debian  # noqa: PLC0415

        for name, data in debian().items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        (tmp_path / "usr/bin/python3").symlink_to("python3.13")
        tree = DirectoryTree(tmp_path)
        found = board_system(read_facts(tree, None, image_bytes=0, root_bytes=0), tree)
        assert (found.python, found.machine, found.glibc) == (SYSTEM.python, "aarch64", "2.41")
        assert "video" in found.groups

    def test_without_python_is_refused(self, tmp_path: Path):
        tree = DirectoryTree(tmp_path)
        with pytest.raises(PrepareError, match="no Python 3"):
            board_system(read_facts(tree, None, image_bytes=0, root_bytes=0), tree)


class TestAnAgentThatIsPacked:
    def test_is_kept_and_packed_anew_where_it_is_damaged(self, tmp_path: Path):
        target = Target("3.13", "aarch64", "2.41")
        from benchmarks.agent_update_rig import make_wheel  # noqa: PLC0415

        wheel = str(make_wheel(tmp_path / "wheels", "0.1.0"))
        kept = packed_agent(target, tmp_path / "cache", source=wheel)
        first, stamp = kept.read_bytes(), kept.stat().st_ino
        assert packed_agent(target, tmp_path / "cache", source=wheel).stat().st_ino == stamp
        kept.write_bytes(first[:-1])
        assert packed_agent(target, tmp_path / "cache", source=wheel).read_bytes() == first

    def test_older_ones_are_forgotten(self, tmp_path: Path):
        import os  # noqa: PLC0415

        from edgeslm.flash.payload.agents import _forget_older  # noqa: PLC0415

        for number in range(6):
            path = tmp_path / f"edgeslm-aarch64-py3.13-glibc2.41-{number}.tar"
            path.write_bytes(b"")
            os.utime(path, (number, number))
        (tmp_path / "edgeslm-x86_64-py3.13-glibc2.41-0.tar").write_bytes(b"")
        _forget_older(tmp_path, "edgeslm-aarch64-py3.13-glibc2.41")
        assert sorted(path.stem[-1] for path in tmp_path.glob("edgeslm-aarch64*.tar")) == ["3", "4", "5"]
        assert len(list(tmp_path.glob("edgeslm-x86_64*"))) == 1
