from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from edgeslm.cli.main import cli
from edgeslm.schema.profile import (
    AgentSettings,
    BoardNeeds,
    BootSettings,
    CpuSettings,
    LogSettings,
    NetworkSettings,
    OtherLoad,
    Profile,
    ProfileBroker,
    RadioSettings,
    ServiceLimits,
    SwapSettings,
    WatchdogSettings,
    WifiNetwork,
)

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = {
    "needs": BoardNeeds,
    "other": OtherLoad,
    "boot": BootSettings,
    "cpu": CpuSettings,
    "radio": RadioSettings,
    "swap": SwapSettings,
    "watchdog": WatchdogSettings,
    "log": LogSettings,
    "network": NetworkSettings,
    "network.wifi": WifiNetwork,
    "broker": ProfileBroker,
    "agent": AgentSettings,
    "service": ServiceLimits,
}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["profile", *map(str, arguments)])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code in (0, 1) else result.stderr


def test_lists_the_profiles_that_ship_and_those_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine alone\nextends: solar\n", "utf-8")
    shown = run("list", "--profiles-dir", tmp_path)
    assert "mine" in shown
    assert "Mine alone" in shown
    listed = {one["name"]: one for one in json.loads(run("list", "--profiles-dir", tmp_path, "--json"))}
    assert listed["mine"]["extends"] == ["solar", "low-power", "default"]
    assert listed["solar"]["file"] == "solar.yaml"


def test_shows_what_the_files_say_and_with_resolved_who_said_it() -> None:
    shown = run("show", "solar")
    assert "cpu.max_share" in shown
    assert "read_only_root" not in shown
    resolved = run("show", "solar", "--resolved")
    assert "read_only_root" in resolved
    line = next(line for line in resolved.splitlines() if line.startswith("radio.bluetooth"))
    assert "low-power.yaml:" in line
    data = json.loads(run("show", "solar", "--json"))
    assert data["profile"]["cpu"]["cores"] == 2
    assert data["from"]["cpu.cores"].startswith("solar.yaml:")


def test_never_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_WIFI", "correct horse battery staple")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: Mine\nnetwork: {wifi: {ssid: clinic, country: DE, password: env:CLINIC_WIFI}}\n",
        "utf-8",
    )
    for command in (("show", "--resolved"), ("show", "--json"), ("check", "-b", "pi-4b")):
        shown = run(command[0], tmp_path / "mine.yaml", *command[1:])
        assert "correct horse" not in shown


def test_a_fit_is_shown_with_its_arithmetic() -> None:
    shown = run("check", "greenhouse", "--board", "pi-4b")
    assert "180 MB system + 32 MB agent + 64 MB home-command" in shown
    assert shown.endswith("profile greenhouse fits board pi-4b\n")


def test_what_does_not_fit_ends_with_1_and_says_why() -> None:
    shown = run("check", "solar", "--board", "pi-5", code=1)
    assert "36.0 Wh in 1 d" in shown
    assert shown.endswith("profile solar does not fit board pi-5\n")
    reports = json.loads(run("check", "solar", "default", "-b", "pi-5", "--json", code=1))
    assert [(one["profile"], one["fits"]) for one in reports] == [("solar", False), ("default", True)]


def test_without_a_board_all_boards_are_looked_at() -> None:
    shown = run("check", "solar")
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert " yes " in lines["pi-zero-2w"]
    assert " no " in lines["pi-5"]


def test_what_is_known_of_the_unit_is_taken_into_account() -> None:
    assert "fits board" in run("check", "clinic-kiosk", "-b", "pi-4b", "--ram", 4096)
    assert "2,048 MB of memory, it has 1,024 MB" in run(
        "check", "clinic-kiosk", "-b", "pi-4b", "--ram", 1024, code=1
    )


def test_a_kind_of_image_that_the_profile_does_not_go_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitle: Mine\nimage: [raspios-trixie]\n", "utf-8")
    assert "fits" in run("check", path, "-b", "pi-4b", "--image", "raspios-trixie")
    assert "the image is ubuntu" in run("check", path, "-b", "pi-4b", "--image", "ubuntu", code=1)


def test_a_model_beside_those_of_the_profile_is_counted() -> None:
    shown = run("check", "default", "-b", "pi-4b", "--model", "builtin:home-command")
    assert shown.count("home-command@") == 1  # the same one is not counted twice
    result = CliRunner().invoke(cli, ["profile", "check", "default", "-b", "pi-4b", "-m", "gone.slm"])
    assert result.exit_code == 4
    assert "no model package 'gone.slm'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "solr", "-b", "pi-4b"), "Did you mean 'solar'?"),
        (("check", "solar", "-b", "pi-44"), "Did you mean 'pi-4b'?"),
        (("check", "solar", "--image", "gone.img"), "there is no such file. Kinds: raspios-bookworm"),
        (("check", "solar", "--card", "huge"), "a size such as 16G"),
        (("show", "gone.yaml"), "there is no profile file gone.yaml"),
        (("diff", "solar", "gone"), "there is no profile 'gone'"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(arguments: tuple[str, ...], said: str) -> None:
    assert said in run(*arguments, code=2)


def test_a_file_with_a_fault_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitle: Mine\nwatchdgo: {}\n", "utf-8")
    assert f"{path}, line 3, watchdgo: unknown key" in run("check", path, code=2)


def test_a_board_that_nobody_knows_is_found_by_a_check(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitle: Mine\nboards: [pi-44b]\n", "utf-8")
    assert "there is no board 'pi-44b'. Did you mean 'pi-4b'?" in run("check", path, "-b", "pi-4b", code=2)


def test_the_tab_key_completes_profiles_and_boards(tmp_path: Path) -> None:
    (tmp_path / "solar-shed.yaml").write_text("name: solar-shed\ntitle: Shed\n", "utf-8")
    complete = ShellComplete(cli, {}, "edgeslm", "_EDGESLM_COMPLETE")
    names = complete.get_completions(["profile", "check", "--profiles-dir", str(tmp_path)], "sol")
    assert [item.value for item in names] == ["solar", "solar-shed"]
    boards = complete.get_completions(["profile", "check", "--board"], "pi-5")
    assert [item.value for item in boards] == ["pi-5", "pi-500"]


def test_rules_that_are_missing_are_found_by_a_check(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitle: Mine\nrules: [gone.yaml]\n", "utf-8")
    assert "there is no such file" in run("check", path, "-b", "pi-4b", code=2)


def test_a_difference_names_both_values() -> None:
    shown = run("diff", "low-power", "solar")
    assert "log.max_mb: 16 -> 8" in shown
    changes = json.loads(run("diff", "low-power", "solar", "--json"))
    assert {"key": "cpu.cores", "before": None, "after": 2} in changes
    assert run("diff", "solar", "solar") == ""


# --- the guide -----------------------------------------------------------------------------------------------


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_guide_is_what_the_files_say() -> None:
    script = _script("profiles_table")
    page = (DOCS / "profiles.md").read_text("utf-8")
    assert script.with_table(page, script.fit_table()) == page, "run: python docs/profiles_table.py"
    assert "| fits |" in page
    assert "| no: " in page


def test_the_guide_names_every_key_of_a_profile() -> None:
    page = (DOCS / "profiles.md").read_text("utf-8")
    for name in Profile.model_fields:
        assert f"`{name}`" in page or f"`{name}." in page, name
    for section, model in SECTIONS.items():
        for name in model.model_fields:
            assert f"`{section}.{name}`" in page, f"{section}.{name}"
