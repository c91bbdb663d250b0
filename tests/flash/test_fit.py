"""Board and profile, held against each other."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeslm
from edgeslm.errors import FitError
from edgeslm.flash.fit import Check, FitReport, FitRequest, ModelNeed, demand, fit
from edgeslm.flash.fit_types import kind_of, total
from edgeslm.flash.image.facts import ImageFacts
from edgeslm.flash.packages import installed_packages
from edgeslm.flash.profiles import load_profile, profile_names
from edgeslm.models.package import read_manifest
from edgeslm.power.boards import load_boards
from edgeslm.schema.board import Board
from edgeslm.schema.profile import Profile

BOARDS = sorted(load_boards())
PROFILES = sorted(profile_names())

TRIXIE = ImageFacts(
    kind="raspios",
    os_id="debian",
    os_version="13",
    os_codename="trixie",
    os_name="Debian GNU/Linux 13 (trixie)",
    machine="aarch64",
    python="3.13",
    python_path="/usr/bin/python3.13",
    glibc="2.41",
    systemd=True,
    image_bytes=3 * 2**30,
    root_bytes=2 * 2**30,
    root_free_bytes=300 * 2**20,
    boot_free_bytes=400 * 2**20,
)


@cache
def home_command() -> ModelNeed:
    """The model that ships."""
    path = Path(str(resources.files("edgeslm._packages") / "home-command.slm"))
    return ModelNeed("builtin:home-command", read_manifest(path), path.stat().st_size)


def model(name: str = "larger", *, size_mb: int = 100, **requires: Any) -> ModelNeed:
    """A model like the one that ships, but for what it needs."""
    known = home_command()
    manifest = known.manifest.model_copy(
        update={"name": name, "requires": known.manifest.requires.model_copy(update=requires)}
    )
    return ModelNeed(f"{name}.slm", manifest, size_mb * 2**20)


@cache
def board(name: str) -> Board:
    """One that ships."""
    return load_boards()[name]


def profile(**said: Any) -> Profile:
    """One that says no more than that."""
    return Profile.model_validate({"name": "mine", "title": "Mine", **said})


def report(board_name: str = "pi-4b", *, changed: dict[str, Any] | None = None, **said: Any) -> FitReport:
    """What comes of a profile that says no more than `said`, on a board that ships; `changed` changes the request."""
    request = FitRequest(board(board_name), profile(**said), (home_command(),), edgeslm.__version__)
    return fit(replace(request, **(changed or {})))


def look(
    name: str, board_name: str = "pi-4b", *, changed: dict[str, Any] | None = None, **said: Any
) -> Check:
    """The first check of that name."""
    found = report(board_name, changed=changed, **said)
    return next(check for check in found.checks if check.name == name)


# --- every board with every profile --------------------------------------------------


@pytest.mark.parametrize("board_name", BOARDS)
@pytest.mark.parametrize("profile_name", PROFILES)
def test_every_profile_fits_every_board_or_says_why_not(board_name: str, profile_name: str) -> None:
    found = fit(
        FitRequest(
            board(board_name), load_profile(profile_name).profile, (home_command(),), edgeslm.__version__
        )
    )
    names = {check.name for check in found.checks}
    assert {"board", "needs", "network", "image", "model", "broker", "memory", "storage", "supply"} <= names
    assert found.fits == (not found.faults)
    for check in found.checks:
        assert len(check.detail) >= 2, check
        assert "None" not in check.detail, check
    for fault in found.faults:
        assert len(fault.detail) > 10, fault


def test_the_default_profile_fits_every_board() -> None:
    for name in BOARDS:
        found = fit(FitRequest(board(name), load_profile("default").profile, (home_command(),), "0.1.0"))
        assert found.fits, (name, found.faults)


def test_every_profile_fits_some_raspberry_pi() -> None:
    for name in PROFILES:
        intent = load_profile(name).profile
        fitting = [
            one
            for one in BOARDS
            if board(one).family == "raspberry-pi"
            and fit(FitRequest(board(one), intent, (home_command(),), edgeslm.__version__)).fits
        ]
        assert fitting, name


def test_demanding_a_fit_tells_all_reasons() -> None:
    found = report("pi-zero-2w", needs={"ram_mb": 4096, "ethernet": True}, watchdog={"timeout_s": 60})
    with pytest.raises(FitError, match=r"needs: .*4,096 MB.*wired network.*watchdog: 60 s") as caught:
        demand(found)
    assert (caught.value.board, caught.value.profile) == ("pi-zero-2w", "mine")
    demand(report("pi-4b"))


# --- the machine --------------------------------------------------


def test_a_profile_for_other_boards_does_not_fit() -> None:
    assert look("board", boards=["pi-5"]).status == "fail"
    assert look("board", boards=["pi-5", "pi-4b"]).status == "pass"
    assert look("board", "rock-5b", needs={"family": ["raspberry-pi"]}).status == "fail"


def test_what_a_board_lacks_is_named() -> None:
    check = look("needs", "pi-zero-2w", needs={"ethernet": True, "cpu_features": ["asimddp"], "cores": 8})
    assert check.status == "fail"
    assert "8 cores, it has 4" in check.detail
    assert "asimddp" in check.detail
    assert "wired network" in check.detail


def test_memory_that_only_some_variants_have_is_a_warning_until_the_unit_is_known() -> None:
    needs = {"ram_mb": 4096}
    assert look("needs", needs=needs).status == "warning"
    assert look("needs", needs=needs, changed={"ram_mb": 8192}).status == "pass"
    assert look("needs", needs=needs, changed={"ram_mb": 2048}).status == "fail"


def test_a_cap_outside_of_the_boards_frequencies_does_not_fit() -> None:
    assert look("frequency", cpu={"max_mhz": 1200}).status == "pass"
    assert "overclock" in (look("frequency", cpu={"max_mhz": 2000}).hint or "")
    assert look("frequency", cpu={"max_mhz": 300}).status == "fail"
    assert look("frequency", "generic-arm64", cpu={"max_mhz": 1200}).status == "unknown"


def test_more_cores_or_threads_than_there_are_do_not_fit() -> None:
    assert look("cores", cpu={"cores": 8}).status == "fail"
    assert look("cores", cpu={"cores": 2}).status == "pass"
    assert look("threads", cpu={"cores": 2}, agent={"threads": 3}).status == "fail"


def test_settings_of_the_firmware_fit_only_boards_that_have_it() -> None:
    boot = {"dtparams": {"i2c_arm": "on"}}
    assert look("firmware", boot=boot).status == "pass"
    check = look("firmware", "rock-5b", boot=boot)
    assert check.status == "fail"
    assert "boot.dtparams" in check.detail


def test_kernel_parameters_need_a_file_that_holds_them() -> None:
    boot = {"cmdline": {"quiet": True}}
    assert look("kernel", boot=boot).status == "pass"
    assert look("kernel", "qemu-virt", boot=boot).status == "unknown"
    assert look("kernel", cpu={"cores": 2}).detail == "kernel parameters maxcpus in cmdline.txt"
    assert look("kernel", hdmi=False).detail == "kernel parameters video in cmdline.txt"
    assert not [check for check in report("qemu-virt", hdmi=False).checks if check.name == "kernel"]


def test_a_board_without_any_network_does_not_fit() -> None:
    assert look("network", "pi-zero-2w", radio={"wifi": False}).status == "fail"
    assert look("network", "pi-4b", radio={"wifi": False}).status == "pass"
    assert look("network", "pi-zero-2w", network={"wired": True}).status == "fail"
    wifi = {"wifi": {"ssid": "x", "country": "DE"}}
    assert look("network", "le-potato", network=wifi).status == "fail"


def test_a_watchdog_that_cannot_wait_so_long_does_not_fit() -> None:
    assert look("watchdog", watchdog={"timeout_s": 15}).status == "pass"
    assert look("watchdog", watchdog={"timeout_s": 60}).status == "fail"
    assert not [
        check
        for check in report(watchdog={"enabled": False, "timeout_s": 60}).checks
        if check.name == "watchdog"
    ]


# --- memory and card --------------------------------------------------


def test_a_model_that_does_not_fit_into_memory_is_refused_with_the_sum() -> None:
    check = look("memory", "pi-zero-2w", changed={"models": (model(ram_mb=400),)})
    assert check.status == "fail"
    assert (
        check.detail
        == "180 MB system + 32 MB agent + 400 MB larger + 51 MB spare = 663 MB, the board has 512 MB"
    )


def test_a_model_that_fits_only_larger_variants_is_a_warning() -> None:
    models = (model(ram_mb=1200),)
    check = look("memory", changed={"models": models})
    assert check.status == "warning"
    assert "not on boards of 1,024 MB" in check.detail
    assert look("memory", changed={"models": models, "ram_mb": 2048}).status == "pass"


def test_memory_of_an_unknown_board_is_unknown_until_it_is_given() -> None:
    assert look("memory", "generic-arm64").status == "unknown"
    assert look("memory", "generic-arm64", changed={"ram_mb": 2048}).status == "pass"
    assert look("memory", "generic-arm64", changed={"ram_mb": 256}).status == "fail"


@given(st.integers(1, 4000), st.integers(256, 8192))
def test_the_sum_that_is_shown_decides(ram_mb: int, size_mb: int) -> None:
    check = look("memory", changed={"models": (model(ram_mb=ram_mb),), "ram_mb": size_mb})
    shown = [int(text.replace(",", "")) for text in re.findall(r"([0-9,]+) MB", check.detail)]
    *parts, whole, limit = shown
    assert whole == sum(parts)
    assert limit == size_mb
    assert (check.status == "pass") == (whole <= limit)


def test_an_update_that_has_no_room_beside_is_told() -> None:
    assert look("updates").status == "pass"
    check = look("updates", "pi-zero-2w", changed={"models": (model(ram_mb=200),)})
    assert check.status == "warning"
    assert "in place of the old one" in check.detail


def test_a_limit_of_the_service_below_its_models_does_not_fit() -> None:
    assert look("service", service={"memory_max_mb": 64}).status == "fail"
    assert look("service", "rock-5b", service={"memory_max_mb": 128}).status == "pass"


def test_room_on_the_card_is_unknown_without_an_image() -> None:
    check = look("storage")
    assert check.status == "unknown"
    assert "MB beside the image's own files" in check.detail


def test_a_card_that_is_too_small_is_refused_with_how_much_is_missing() -> None:
    large = (model(size_mb=400),)
    known = {"image": TRIXIE, "models": large}
    assert look("storage", changed=known).status == "warning"
    assert look("storage", changed={**known, "card_bytes": 32 * 10**9}).status == "pass"
    check = look("storage", changed={**known, "card_bytes": 4 * 10**9})
    assert check.status == "fail"
    assert "MB larger" in (check.hint or "")


def test_an_image_that_is_larger_than_the_card_is_refused() -> None:
    check = look("storage", changed={"image": TRIXIE, "card_bytes": 2 * 10**9})
    assert check.status == "fail"
    assert check.detail == "the image has 3,072 MB, the card 1,907 MB"


def test_swap_and_log_on_the_card_are_counted() -> None:
    plain = look("storage", changed={"image": TRIXIE})
    more = look(
        "storage",
        changed={"image": TRIXIE},
        swap={"kind": "file", "size_mb": 1024},
        log={"storage": "persistent", "max_mb": 100},
    )
    assert "1,024 MB swap + 100 MB log" in more.detail
    assert "swap" not in plain.detail


# --- power --------------------------------------------------


def test_more_than_the_supply_gives_does_not_fit() -> None:
    assert look("supply").status == "pass"
    check = look("supply", other={"power_w": 12})
    assert check.status == "fail"
    assert "12.00 W attached" in check.detail


def test_a_cap_lowers_what_the_supply_has_to_give() -> None:
    def most_w(**said: Any) -> float:
        found = re.search(r"= ([0-9.]+) W", look("supply", **said).detail)
        assert found is not None
        return float(found[1])

    assert most_w(cpu={"max_share": 0.5}) < most_w() > most_w(cpu={"cores": 2})


def test_a_budget_below_the_idle_draw_does_not_fit_and_shows_why() -> None:
    check = look("budget", budget={"windows": [{"name": "day", "limit": "36 Wh", "over": "1d"}]})
    assert check.status == "fail"
    assert "36.0 Wh in 1 d" in check.detail
    assert "64.8 Wh in 1 d" in check.detail


def test_what_is_attached_counts_against_the_budget() -> None:
    budget = {"windows": [{"name": "heat", "limit": "4 W", "over": "10m"}]}
    assert look("budget", budget=budget).status == "pass"
    assert look("budget", budget=budget, other={"power_w": 1.5}).status == "fail"


def test_a_budget_that_only_some_units_can_keep_is_a_warning() -> None:
    found = report(budget={"windows": [{"name": "day", "limit": "3 W", "over": "1d"}]})
    assert [check.status for check in found.checks if check.name == "budget"] == ["pass", "warning"]
    assert found.fits


def test_a_battery_has_to_be_measured() -> None:
    assert look("battery", budget={"battery": {"reserve": "20 %"}}).status == "unknown"


def test_a_ceiling_that_is_never_reached_is_a_warning() -> None:
    assert look("heat", budget={"temperature": {"ceiling": "85 C"}}).status == "warning"
    assert look("heat", budget={"temperature": {"ceiling": "70 C"}}).status == "pass"


# --- image, models, joining --------------------------------------------------


def test_an_image_of_another_kind_does_not_fit() -> None:
    wanted = ["raspios-bookworm"]
    assert look("image", image=wanted).status == "unknown"
    assert look("image", image=wanted, changed={"image_kind": "raspios-bookworm"}).status == "pass"
    check = look("image", image=wanted, changed={"image": TRIXIE})
    assert check.status == "fail"
    assert check.detail == "the image is raspios-trixie, the profile goes on raspios-bookworm"


@pytest.mark.parametrize(
    ("kind", "codename", "name"),
    [
        ("raspios", "trixie", "raspios-trixie"),
        ("raspios", "", None),
        ("armbian", "noble", "armbian"),
        ("unknown", "x", None),
    ],
)
def test_a_kind_of_image_is_named_as_in_profiles(kind: Any, codename: str, name: str | None) -> None:
    assert kind_of(replace(TRIXIE, kind=kind, os_codename=codename)) == name


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("machine", {"machine": "armv7l"}),
        ("machine", {"machine": "x86_64"}),
        ("python", {"python": "3.9"}),
        ("python", {"python": "3.14"}),
        ("python", {"python": None}),
        ("glibc", {"glibc": "2.31"}),
        ("systemd", {"systemd": False}),
    ],
)
def test_an_image_that_cannot_run_the_agent_does_not_fit(name: str, changed: dict[str, Any]) -> None:
    check = look(name, changed={"image": replace(TRIXIE, **changed)})
    assert check.status == "fail"
    assert check.hint


def test_an_image_that_says_little_is_unknown_not_wrong() -> None:
    found = report(changed={"image": replace(TRIXIE, machine=None, glibc=None), "card_bytes": 32 * 10**9})
    assert found.fits
    assert {check.name for check in found.checks if check.status == "unknown"} == {
        "machine",
        "glibc",
        "broker",
    }


def test_packages_that_the_image_lacks_are_named() -> None:
    wanted = ["chromium | chromium-browser", "cage"]
    assert look("packages", packages=wanted).status == "unknown"
    some = {"packages": frozenset({"chromium-browser"})}
    check = look("packages", packages=wanted, changed=some)
    assert (check.status, check.detail) == ("fail", "the image lacks cage")
    both = {"packages": frozenset({"chromium", "cage"})}
    assert look("packages", packages=wanted, changed=both).status == "pass"


def test_compressed_swap_needs_a_kernel_that_has_it() -> None:
    assert look("swap", swap={"kind": "zram", "share": 0.5}).status == "unknown"
    assert not [check for check in report(swap={"kind": "none"}).checks if check.name == "swap"]


def test_a_read_only_root_needs_a_partition_of_the_card_for_state() -> None:
    assert look("root", read_only_root=True, state_device="LABEL=state").status == "fail"
    assert look("root", read_only_root=True, state_device="card").status == "pass"


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        ({"agent": "99.0.0"}, "needs edgeslm 99.0.0"),
        ({"cpu_features": ("asimddp",)}, "processor with asimddp"),
    ],
)
def test_a_model_that_this_board_cannot_run_does_not_fit(requires: dict[str, Any], said: str) -> None:
    check = look("model", changed={"models": (model(**requires),)})
    assert check.status == "fail"
    assert said in check.detail


def test_a_model_for_the_old_runtime_alone_needs_an_old_python() -> None:
    known = home_command()
    graphs = tuple(
        graph.model_copy(update={"runtimes": ("tflite-runtime",)}) for graph in known.manifest.graphs
    )
    old = (replace(known, manifest=known.manifest.model_copy(update={"graphs": graphs})),)
    assert look("model", changed={"models": old}).status == "unknown"
    assert look("model", changed={"models": old, "image": TRIXIE}).status == "fail"
    assert look("model", changed={"models": old, "image": replace(TRIXIE, python="3.11")}).status == "pass"


def test_a_model_of_the_fleet_needs_a_claim() -> None:
    models = ["release:larger@1.0.0"]
    nothing: dict[str, Any] = {"models": ()}
    assert look("model", models=models, changed=nothing).status == "unknown"
    assert look("model", models=models, changed={**nothing, "has_claim": True}).status == "pass"
    assert look("model", models=models, changed={**nothing, "has_claim": False}).status == "fail"


def test_a_device_without_claim_and_broker_is_warned_of() -> None:
    assert look("broker", changed={"has_claim": False}).status == "warning"
    assert look("broker", changed={"has_claim": False}, broker={"host": "b.lan"}).status == "pass"
    assert look("broker", changed={"has_claim": True}).status == "pass"


# --- parts --------------------------------------------------


def test_a_sum_leaves_out_what_is_nothing() -> None:
    assert total([("a", 1), ("b", 0), ("c", 2.5)], "W", 1) == (3.5, "1.0 W a + 2.5 W c = 3.5 W")
    assert total([("a", 1)], "MB") == (1, "1 MB a")


def test_packages_count_from_installed_on() -> None:
    status = b"""Package: bash
Status: install ok installed
Description: a shell
 Package: not-this

Package: gone
Status: deinstall ok config-files

Package: held
Status: hold ok installed

Package: base
Status: install ok unpacked

Status: install ok installed
"""
    assert installed_packages(status) == {"base", "bash", "held"}


@given(st.binary(max_size=400))
def test_no_bytes_break_the_list_of_packages(status: bytes) -> None:
    assert all(isinstance(name, str) and name for name in installed_packages(status))
