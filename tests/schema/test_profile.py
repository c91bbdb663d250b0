from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeslm.schema.config import AgentConfig
from edgeslm.schema.profile import (
    AgentSettings,
    BootSettings,
    CpuSettings,
    Profile,
    SwapSettings,
    WifiNetwork,
)


def profile(**said: Any) -> Profile:
    return Profile.model_validate({"name": "mine", "title": "Mine", **said})


def test_a_profile_that_says_nothing_leaves_the_image_as_it_is() -> None:
    empty = profile()
    assert not empty.boot.needs_firmware
    assert (empty.radio.wifi, empty.hdmi, empty.leds, empty.swap, empty.watchdog, empty.log) == (None,) * 6
    assert not empty.budget.restrains
    assert empty.agent.given() == {}
    assert empty.is_for("pi-4b")


@pytest.mark.parametrize(
    "secret", ["hunter2", "", "env:", "env:1X", "env:A B", "file:", "file:a\nb", 7, None, {}]
)
def test_refuses_a_secret_that_is_written_out_and_does_not_repeat_it(secret: object) -> None:
    with pytest.raises(ValidationError) as caught:
        profile(
            broker={
                "host": "broker.lan",
                "username": "pi",
                "password": {"x": secret} if secret is None else secret,
            }
        )
    told = caught.value.errors(include_input=False, include_url=False, include_context=False)
    assert "env:NAME or file:PATH" in told[0]["msg"]
    assert "hunter2" not in str(told)


@given(st.text(max_size=40))
def test_no_text_but_a_reference_passes_for_a_secret(text: str) -> None:
    try:
        WifiNetwork(ssid="a", country="DE", password=text)
    except ValidationError:
        return
    assert text.startswith(("env:", "file:"))
    assert "\n" not in text


@given(st.one_of(st.text(max_size=120), st.integers(), st.booleans(), st.floats(), st.none()))
def test_a_value_of_config_txt_is_always_one_line(value: object) -> None:
    try:
        boot = BootSettings.model_validate({"config": {"gpu_mem": value}})
    except ValidationError:
        return
    line = f"gpu_mem={boot.config['gpu_mem']}"
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 98


@given(st.one_of(st.text(max_size=300), st.integers(), st.booleans(), st.floats(), st.none()))
def test_a_kernel_parameter_is_always_one_word(value: object) -> None:
    try:
        boot = BootSettings.model_validate({"cmdline": {"console": value}})
    except ValidationError:
        return
    found = boot.cmdline["console"]
    assert isinstance(found, bool) or (found.isascii() and len(found.split()) == 1 and '"' not in found)


def test_a_number_is_a_value_of_a_kernel_parameter_and_false_takes_it_out() -> None:
    boot = BootSettings.model_validate({"cmdline": {"consoleblank": 0, "quiet": True, "splash": False}})
    assert boot.cmdline == {"consoleblank": "0", "quiet": True, "splash": False}


@pytest.mark.parametrize("key", ["arm_freq", "dtoverlay", "dtparam", "include", "kernel", "dtparam:0"])
def test_refuses_lines_of_config_txt_that_have_a_setting_of_their_own(key: str) -> None:
    with pytest.raises(ValidationError, match="is set by"):
        BootSettings.model_validate({"config": {key: 1}})


@pytest.mark.parametrize("key", ["root", "init", "maxcpus", "rootfstype"])
def test_refuses_kernel_parameters_that_are_the_images_own(key: str) -> None:
    with pytest.raises(ValidationError, match="is set by"):
        BootSettings.model_validate({"cmdline": {key: "x"}})


def test_a_line_that_the_firmware_would_cut_off_is_refused() -> None:
    with pytest.raises(ValidationError, match="98 characters"):
        BootSettings.model_validate({"config": {"a" * 40: "b" * 60}})


@given(st.floats(0.1, 1), st.integers(600, 5000), st.integers(100, 600))
def test_a_share_is_a_cap_that_the_board_can_hold(share: float, highest: int, lowest: int) -> None:
    cap = CpuSettings(max_share=share).cap_mhz(highest, lowest)
    assert cap is not None
    assert lowest <= cap <= highest


def test_a_share_of_an_unknown_frequency_is_unknown() -> None:
    assert CpuSettings(max_share=0.5).cap_mhz(None) is None
    assert CpuSettings(max_mhz=900).cap_mhz(None) == 900
    assert CpuSettings().cap_mhz(1500) is None


@pytest.mark.parametrize(
    "swap",
    [
        {"kind": "none", "size_mb": 100},
        {"kind": "file"},
        {"kind": "file", "size_mb": 100, "share": 0.5},
        {"kind": "zram"},
        {"kind": "zram", "size_mb": 100, "share": 0.5},
    ],
)
def test_refuses_a_swap_whose_size_is_not_said_once(swap: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SwapSettings.model_validate(swap)


def test_zram_may_be_a_share_of_the_memory() -> None:
    assert SwapSettings(kind="zram", share=0.5).size_of(1024) == 512
    assert SwapSettings(kind="file", size_mb=100).size_of(1024) == 100
    assert SwapSettings(kind="none").size_of(1024) == 0


def test_settings_of_the_agent_are_settings_that_the_agent_knows() -> None:
    said = {"threads": 2, "pool": False, "metrics": {"interval_s": 30}, "power": {"sample_hz": 5}}
    given_ = AgentSettings.model_validate(said).given()
    assert given_["metrics"] == {"interval_s": 30.0}
    assert AgentConfig.model_validate({"device": "a", **given_}).threads == 2
    assert set(AgentSettings.model_fields) <= set(AgentConfig.model_fields)


@pytest.mark.parametrize("reference", ["builtin:../x", "builtin:A", "release:x@1", "release:", "", "a\nb"])
def test_refuses_models_that_could_not_be_found(reference: str) -> None:
    with pytest.raises(ValidationError):
        profile(models=[reference])


@pytest.mark.parametrize("device", ["/dev/../etc", "LABEL=a b", "sda1", "LABEL=", "/dev/sda1 / ext4"])
def test_refuses_a_device_that_would_be_more_than_one_word_of_fstab(device: str) -> None:
    with pytest.raises(ValidationError):
        profile(state_device=device)


@pytest.mark.parametrize("name", ["--allow", "a b", "chromium|firefox", "A", "x; rm"])
def test_refuses_what_is_no_name_of_a_package(name: str) -> None:
    with pytest.raises(ValidationError):
        profile(packages=[name])
