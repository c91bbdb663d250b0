"""Archives installed on a board's files, by the program that is in them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeslm.agent import launcher
from edgeslm.flash.onboard import work
from edgeslm.flash.onboard.disk import Disk
from edgeslm.flash.onboard.main import Archive
from edgeslm.flash.onboard.manifest import OnboardError
from edgeslm.flash.payload import layout
from edgeslm.schema.agent_release import AGENT_MARKER

Archives = Callable[..., Any]


def test_everything_lies_where_the_manifest_says(board: Any, archives: Archives) -> None:
    made = archives()
    found = board.install(made)
    assert (found["written"], found["kept"], found["before"]) == (len(made.manifest.items), [], None)
    for item in made.manifest.items:
        place = board.root / item.path[1:]
        if item.kind == "file":
            assert place.read_bytes() == made.contents[item.path]
        if item.kind == "symlink":
            assert str(place.readlink()) == item.target
        else:
            assert stat.S_IMODE(place.stat().st_mode) == item.mode
    assert (board.root / layout.UNIT_LINK[1:]).resolve() == board.root / layout.UNIT[1:]
    assert (board.root / layout.CURRENT[1:] / "bin/python").is_symlink()


def test_doing_it_again_changes_nothing(board: Any, archives: Archives) -> None:
    board.install(archives())
    before = board.tree()
    found = board.install(archives())
    assert (found["missing"], found["written"]) == (0, 0)
    assert board.tree() == before


def test_what_was_damaged_since_is_mended(board: Any, archives: Archives) -> None:
    board.install(archives())
    before = board.tree()
    board.write(layout.LAUNCHER, b"broken", 0o600)
    (board.root / layout.UNIT_LINK[1:]).unlink()
    assert board.install(archives())["written"] == 2
    assert board.tree() == before


def test_a_dry_run_says_what_would_be_and_does_nothing(board: Any, archives: Archives) -> None:
    before = board.tree()
    done = board.call(archives(), "--dry-run", "--json")
    assert done.returncode == 0
    assert '"written": 0' in done.stdout
    assert "install edgeslm 1.0.0 for host with the profile default" in done.stderr
    assert board.tree() == before


def test_nobody_to_ask_is_no_yes(board: Any, archives: Archives) -> None:
    before = board.tree()
    done = board.call(archives())
    assert done.returncode == 2
    assert "Say --yes" in done.stderr
    assert board.tree() == before


def test_a_unit_that_a_person_wrote_is_left_and_told(board: Any, archives: Archives) -> None:
    board.write("/etc/systemd/system/edgeslm.service", b"[Service]")
    found = board.install(archives())
    assert found["beside"] == "/etc/systemd/system/edgeslm.service"
    assert "two agents would run. End it with: systemctl disable --now edgeslm.service" in found["said"]
    assert board.read("/etc/systemd/system/edgeslm.service") == b"[Service]"


class TestUpgrading:
    def test_state_stays_and_the_new_version_runs(self, board: Any, archives: Archives) -> None:
        board.install(archives())
        journal = board.write(f"{layout.STATE}/agent.db", b"journal")
        identity = board.write(f"{layout.STATE}/identity/key.pem", b"key", 0o600)
        trial = board.write(f"{layout.AGENT_ROOT}/trial.json", b"{}")
        new = archives("2.0.0")
        found = board.install(new)
        assert (found["edgeslm"], found["before"]) == ("2.0.0", "1.0.0")
        assert "in place of edgeslm 1.0.0" in found["said"]
        assert (journal.read_bytes(), identity.read_bytes()) == (b"journal", b"key")
        assert not trial.exists()  # what is put there by hand is not on trial
        assert str((board.root / layout.CURRENT[1:]).readlink()).startswith("versions/2.0.0-")
        assert b'"edgeslm":"2.0.0"' in board.read(layout.MANIFEST)

    def test_the_version_before_stays_to_go_back_to_and_older_ones_go(
        self, board: Any, archives: Archives
    ) -> None:
        for version in ("1.0.0", "2.0.0", "3.0.0"):
            board.install(archives(version))
        versions = sorted(place.name for place in (board.root / layout.VERSIONS[1:]).iterdir())
        assert [name.split("-")[0] for name in versions] == ["2.0.0", "3.0.0"]
        assert launcher.read_link(board.root / layout.AGENT_ROOT[1:], "previous") == versions[0]
        assert launcher.read_link(board.root / layout.AGENT_ROOT[1:], "current") == versions[1]

    def test_settings_that_nobody_changed_are_the_new_ones(self, board: Any, archives: Archives) -> None:
        board.install(archives())
        new = archives("2.0.0", profile="low-power")
        assert board.install(new)["kept"] == []
        assert board.read(layout.SETTINGS) == new.contents[layout.SETTINGS]

    def test_settings_that_a_person_changed_stay_and_are_named(self, board: Any, archives: Archives) -> None:
        board.install(archives())
        board.write(layout.SETTINGS, b"device: porch\nthreads: 1\n")
        new = archives("2.0.0", profile="low-power")
        for _ in range(2):  # the second time there is another manifest, and they are still a person's
            found = board.install(new)
            assert found["kept"] == [layout.SETTINGS]
            assert f"keep {layout.SETTINGS}: it was changed" in found["said"]
            assert board.read(layout.SETTINGS) == b"device: porch\nthreads: 1\n"

    def test_settings_from_before_the_first_installation_are_a_persons(
        self, board: Any, archives: Archives
    ) -> None:
        board.write(layout.SETTINGS, b"device: mine\n")
        assert board.install(archives())["kept"] == [layout.SETTINGS]
        assert board.read(layout.SETTINGS) == b"device: mine\n"

    def test_they_are_replaced_where_that_is_asked_for_and_not_lost(
        self, board: Any, archives: Archives
    ) -> None:
        board.install(archives())
        board.write(layout.SETTINGS, b"device: mine\n")
        found = board.install(archives(), "--replace-settings")
        assert (found["kept"], found["saved"]) == ([], [f"{layout.SETTINGS}.old"])
        assert board.read(layout.SETTINGS) == archives().contents[layout.SETTINGS]
        assert board.read(f"{layout.SETTINGS}.old") == b"device: mine\n"

    def test_the_unit_is_ours_whatever_was_done_to_it(self, board: Any, archives: Archives) -> None:
        board.install(archives())
        board.write(layout.UNIT, b"[Service]\n")
        assert board.install(archives())["kept"] == []
        assert board.read(layout.UNIT) == archives().contents[layout.UNIT]

    def test_files_of_the_version_before_go_unless_they_were_changed(
        self, board: Any, archives: Archives, tmp_path: Path
    ) -> None:
        texts = {"warm.yaml": b"name: warm\n", "cold.yaml": b"name: cold\n"}
        for name, text in texts.items():
            (tmp_path / name).write_bytes(text)
        board.install(archives(rules=(tmp_path / "warm.yaml", tmp_path / "cold.yaml")))
        named = sorted(path for path in board.tree() if path.startswith(f"{layout.RULES}/"))
        assert len(named) == 2
        board.write(named[0], b"name: mine\n")
        found = board.install(archives("2.0.0"))
        assert found["obsolete"] == [named[1]]
        assert f"remove {named[1]}, which this version does not have" in found["said"]
        assert (board.has(named[0]), board.has(named[1])) == (True, False)

    def test_files_that_a_persons_settings_may_name_stay(
        self, board: Any, archives: Archives, tmp_path: Path
    ) -> None:
        (tmp_path / "warm.yaml").write_bytes(b"name: warm\n")
        board.install(archives(rules=(tmp_path / "warm.yaml",)))
        board.write(layout.SETTINGS, b"rules: [rules/warm.yaml]\n")
        assert board.install(archives("2.0.0"))["obsolete"] == []


class TestLinks:
    def test_the_state_of_a_dynamic_user_is_found_behind_its_link(
        self, board: Any, archives: Archives
    ) -> None:
        board.install(archives())
        state = board.root / "var/lib/edgeslm"
        (board.root / "var/lib/private").mkdir(0o700)
        state.rename(board.root / "var/lib/private/edgeslm")
        state.symlink_to("private/edgeslm")
        (board.root / "var/lib/private/edgeslm").chmod(0o700)
        before = board.tree()
        assert board.install(archives())["missing"] == 0
        assert board.tree() == before
        board.install(archives("2.0.0"))
        assert state.is_symlink()
        assert any(path.startswith("/var/lib/private/edgeslm/agent/versions/2.0.0-") for path in board.tree())

    def test_a_link_of_the_service_leads_nowhere(self, board: Any, archives: Archives) -> None:
        board.install(archives())
        elsewhere = board.root / "elsewhere"
        elsewhere.mkdir()
        name = archives("2.0.0").manifest.items
        version = next(item.path for item in name if item.path.startswith(f"{layout.VERSIONS}/")).split("/")[
            6
        ]
        (board.root / layout.VERSIONS[1:] / version).mkdir()
        (board.root / layout.VERSIONS[1:] / version / "bin").symlink_to(elsewhere)
        done = board.call(archives("2.0.0"), "--yes")
        # The link itself was in the place of a directory of ours, and gave way to it.
        assert done.returncode == 0, done.stderr
        assert list(elsewhere.iterdir()) == []
        (board.root / layout.AGENT_ROOT[1:]).rename(board.root / "agent")
        (board.root / layout.AGENT_ROOT[1:]).symlink_to("/elsewhere")
        disk = Disk(board.root, layout.STATE)
        item = next(item for item in name if item.path.endswith("/bin/python3"))
        with pytest.raises(OnboardError, match="is no directory of its own"):
            disk.put(item, lambda _: None, (-1, -1), synced=False)  # type: ignore[arg-type,return-value]
        assert list(elsewhere.iterdir()) == []

    def test_links_of_the_system_stay_within_its_root(self, board: Any, archives: Archives) -> None:
        (board.root / "data").mkdir()
        (board.root / "opt").symlink_to("/data")
        board.install(archives())
        assert (board.root / "data/edgeslm/launch.py").is_file()


class TestOrder:
    def test_what_makes_the_rest_count_is_written_once_that_lasts(
        self, board: Any, archives: Archives, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, events = archives(), []
        disk = Disk(board.root, layout.STATE)
        put = disk.put

        def noted(item: Any, *args: Any, **kinds: Any) -> None:
            events.append(item.path)
            put(item, *args, **kinds)

        monkeypatch.setattr(disk, "put", noted)
        monkeypatch.setattr(work.os, "sync", lambda: events.append("sync"))
        plan = work.plan_install(made.manifest, disk)
        work.install(made.manifest, plan, disk, Archive(made.path).open_bytes, lambda _: None)
        after = events[events.index("sync") + 1 :]
        assert layout.CURRENT in after
        assert after[after.index(layout.UNIT) :] == [
            layout.UNIT,
            layout.UNIT_LINK,
            "sync",
            layout.MANIFEST,
            "sync",
        ]
        marker = next(path for path in events if path.endswith("/agent.json"))
        assert events.index(marker) > events.index("sync")

    def test_the_words_are_those_of_the_launcher(self) -> None:
        assert (work._CURRENT, work._PREVIOUS) == (launcher.CURRENT, launcher.PREVIOUS)
        assert (work._VERSIONS, work._TRIAL, work._MARK) == (launcher.VERSIONS, launcher.TRIAL, AGENT_MARKER)

    def test_two_at_once_are_one_too_many(self, board: Any, archives: Archives) -> None:
        with Disk(board.root).alone():
            done = board.call(archives(), "--yes")
        assert done.returncode == 1
        assert "another installation is at work" in done.stderr

    def test_too_little_room_is_said_before_anything_is_written(
        self, board: Any, archives: Archives, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Disk(board.root, layout.STATE)
        monkeypatch.setattr(disk, "free_bytes", lambda path: (1, 2**20))
        with pytest.raises(OnboardError, match=r"no room: \d+ MiB are needed, 1 MiB are free"):
            work.plan_install(archives().manifest, disk)
