from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import MeterError
from edgeslm.power.meters.linear import Correction
from edgeslm.power.meters.pmic import PmicMeter, probe, rails_w

ANSWER = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=1.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
RAILS_W = 2.7228
"""By hand: the core's 1.6843 W and the other eleven rails."""


class Tool:
    """A stand-in for ``vcgencmd`` that counts how often it is started."""

    def __init__(self, directory: Path) -> None:
        self.answer = directory / "answer"
        self.calls = directory / "calls"
        self.program = directory / "vcgencmd"
        self.calls.write_text("")
        self.says(ANSWER)
        self.program.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\ncat {self.answer}\n')
        self.program.chmod(0o755)

    def says(self, text: str) -> None:
        self.answer.write_text(text)

    @property
    def command(self) -> tuple[str, ...]:
        return (str(self.program),)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


def test_rails_are_added_up_and_voltages_without_a_current_left_out() -> None:
    assert rails_w(ANSWER) == pytest.approx(RAILS_W, abs=0.001)


def test_a_current_without_its_voltage_is_an_error_that_names_the_rail() -> None:
    with pytest.raises(ValueError, match="VDD_CORE"):
        rails_w("\n".join(line for line in ANSWER.splitlines() if "VDD_CORE_V" not in line))


@given(st.text(max_size=200))
def test_what_is_no_answer_of_the_chip_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        rails_w(text)


def test_the_published_line_leads_from_rails_to_the_board(tool: Tool) -> None:
    meter = PmicMeter(tool.command, clock=lambda: 5.0)
    assert meter.read().power_w == pytest.approx(1.1451 * RAILS_W + 0.5879, abs=0.002)
    assert meter.facts.meter_class == "calibrated"
    assert meter.facts.error_share > 0.02
    assert "jfikar/RPi5-power" in meter.facts.source
    assert tool.calls.read_text() == "pmic_read_adc\n"


def test_a_calibration_of_ones_own_takes_its_place(tool: Tool) -> None:
    own = Correction(scale=1.0, offset_w=1.0, error_share=0.01, error_w=0.02, source="own plug")
    meter = PmicMeter(tool.command, own, clock=lambda: 5.0)
    assert meter.read().power_w == pytest.approx(RAILS_W + 1.0, abs=0.001)
    assert (meter.facts.error_share, meter.facts.error_w, meter.facts.source) == (0.01, 0.02, "own plug")


def test_the_program_is_started_once_a_second_at_most(tool: Tool) -> None:
    now_s = 0.0
    meter = PmicMeter(tool.command, clock=lambda: now_s)
    first = meter.read()
    for _ in range(9):
        now_s += 0.1
        assert meter.read() is first
    now_s += 0.11
    assert meter.read().at_s == pytest.approx(1.01)
    assert len(tool.calls.read_text().splitlines()) == 2


def test_a_program_that_fails_is_gone_and_one_that_babbles_is_rubbish(tool: Tool) -> None:
    now_s = 0.0
    meter = PmicMeter(tool.command, clock=lambda: now_s)
    tool.says('error=1 error_msg="Command not registered"\n')
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.fault == "rubbish"
    depths = set()
    for _ in range(5):
        with pytest.raises(MeterError) as caught:
            meter.read()
        depths.add(len(caught.traceback))
    assert len(depths) == 1
    assert len(tool.calls.read_text().splitlines()) == 1
    tool.program.unlink()
    now_s = 1.0
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.fault == "gone"
    assert caught.value.meter == "pmic"


def test_a_board_without_the_chip_is_told_apart(tool: Tool) -> None:
    assert probe(tool.command) is None
    tool.says("no such command\n")
    assert probe(tool.command) is not None
    assert probe(("/no/such/vcgencmd",)) is not None
