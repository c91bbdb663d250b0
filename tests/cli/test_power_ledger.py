"""``edgeslm power report``, ``explain`` and ``check``: what the commands make of the agent's ledger."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result

from edgeslm.cli.power import power
from edgeslm.cli.power_check import usual_prompt
from edgeslm.cli.power_report import moment
from edgeslm.errors import BudgetError, UsageError
from edgeslm.power.actuators import FrequencyCap
from edgeslm.power.attribution import EndedSpan, Interval, Settlement, Share
from edgeslm.power.boards import load_boards
from edgeslm.power.governor_types import Run
from edgeslm.power.ledger import Ledger
from edgeslm.power.ledger_reader import PromptNote, PromptRow
from edgeslm.power.monitor import LEDGER_NAME
from edgeslm.power.port import Cause
from edgeslm.power.steward import Ask, Spent, Steward
from edgeslm.schema.budget import Budget

MODEL = "home-command@1.0.0"
IDLE_W = 2.0
TIGHT = {"windows": [{"name": "heat", "limit": "3 W", "over": "1m"}]}


def stretch(
    start_s: float, seconds: float, power_w: float, *shares: Share, ended: tuple[EndedSpan, ...] = ()
):
    energy_j = power_w * seconds
    settlement = Settlement(start_s, start_s + seconds, energy_j, "measured", shares, ended)
    return Interval(start_s, start_s + seconds, energy_j, power_w, "measured", settlement)


@contextmanager
def agents_ledger(state_dir: Path) -> Iterator[Ledger]:
    """A ledger as an agent writes it; its monotonic time is Unix time."""
    ledger = Ledger(state_dir / LEDGER_NAME, None)
    yield ledger
    assert ledger.flush(time.time())
    ledger.close()


def an_hour(state_dir: Path, end_s: float) -> None:
    """An hour of idle at 2 W with six prompts of 10 s and 20 J above idle."""
    with agents_ledger(state_dir) as ledger:
        for number in range(360):
            start_s = end_s - 3600 + 10 * number
            if number % 60 == 30:
                prompt = Share("prompt", MODEL, "lights", 40.0, 20.0, 10.0)
                ended = EndedSpan(
                    Cause("prompt", MODEL, f"p{number}", "lights"), 10.0, 40.0, 20.0, "measured"
                )
                ledger.note(
                    PromptNote(
                        f"p{number}",
                        start_s,
                        MODEL,
                        "lights",
                        prompt_tokens=8,
                        completion_tokens=10,
                        predicted_j=16.0,
                    )
                )
                interval = stretch(start_s, 10, 4.0, prompt, ended=(ended,))
            else:
                interval = stretch(start_s, 10, IDLE_W, Share("idle", None, None, 20.0, 0.0, 10.0))
            ledger.add(interval, start_s + 10, start_s + 10)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    an_hour(path, time.time() - 60)
    return path


def invoke(state_dir: Path, *arguments: str, **config: Any) -> Result:
    path = state_dir.parent / "agent.yaml"
    path.write_text(
        yaml.safe_dump({"device": "test", "board": "pi-4b", "state_dir": str(state_dir)} | config)
    )
    command, *rest = arguments
    return CliRunner().invoke(power, [command, "--config", str(path), *rest], catch_exceptions=False)


# --- report -------------------------------------------------------------------------------------------------


def test_the_causes_sum_to_the_total(state_dir):
    report = json.loads(invoke(state_dir, "report", "--json").stdout)
    by_cause = {row["group"]: row["energy_j"] for row in report["rows"]}
    assert by_cause == {"idle": pytest.approx(354 * 20), "prompt": pytest.approx(6 * 40)}
    assert report["total"]["energy_j"] == pytest.approx(354 * 20 + 240)
    assert report["total"]["meter"] == "measured"


def test_only_the_period_counts(state_dir):
    report = json.loads(invoke(state_dir, "report", "--json", "--since", "32m", "--until", "2m").stdout)
    assert report["total"]["energy_j"] == pytest.approx(3600 + 60, abs=150)
    assert (
        json.loads(invoke(state_dir, "report", "--json", "--until", "2h", "--since", "3h").stdout)["total"]
        is None
    )


def test_a_model_is_charged_for_its_prompts_and_tokens(state_dir):
    rows = json.loads(invoke(state_dir, "report", "--by", "model", "--json").stdout)["rows"]
    found = next(row for row in rows if row["group"] == MODEL)
    assert (found["prompts"], found["completion_tokens"]) == (6, 60)
    assert (found["j_per_prompt"], found["j_per_token"]) == (pytest.approx(20.0), pytest.approx(2.0))


def test_a_rule_is_charged_too(state_dir):
    rows = json.loads(invoke(state_dir, "report", "--by", "rule", "--json").stdout)["rows"]
    assert {row["group"]: row["net_j"] for row in rows} == {None: 0.0, "lights": pytest.approx(120.0)}


def test_hours_come_in_order_and_sum_up(state_dir):
    report = json.loads(invoke(state_dir, "report", "--by", "hour", "--json").stdout)
    hours = [datetime.fromisoformat(row["group"]) for row in report["rows"]]
    assert hours == sorted(hours)
    assert 1 <= len(hours) <= 2
    assert sum(row["energy_j"] for row in report["rows"]) == pytest.approx(report["total"]["energy_j"])


def test_the_budgets_tariff_prices_the_energy(state_dir):
    budget = {"tariff": {"price_per_kwh": 0.36, "co2_g_per_kwh": 360}}
    total = json.loads(invoke(state_dir, "report", "--json", budget=budget).stdout)["total"]
    assert total["cost"] == pytest.approx(0.36 * 7320 / 3.6e6)
    assert total["co2_g"] == pytest.approx(360 * 7320 / 3.6e6)


def test_a_flag_takes_the_place_of_the_tariff(state_dir):
    budget = {"tariff": {"price_per_kwh": 0.36, "co2_g_per_kwh": 360}}
    done = invoke(state_dir, "report", "--json", "--co2", "0", budget=budget)
    total = json.loads(done.stdout)["total"]
    assert (total["cost"], total["co2_g"]) == (pytest.approx(0.36 * 7320 / 3.6e6), 0.0)


def test_without_a_rate_nothing_is_said_of_cost(state_dir):
    assert json.loads(invoke(state_dir, "report", "--json").stdout)["total"]["cost"] is None
    assert "CO2e" not in invoke(state_dir, "report").stdout


def test_the_table_shows_shares_and_a_total(state_dir):
    lines = invoke(state_dir, "report", "--co2", "400").stdout.splitlines()
    assert lines[1].split()[:2] == ["cause", "energy"]
    assert any(line.startswith("prompt") and "3.3%" in line for line in lines)
    assert lines[-1].startswith("total")
    assert "2.03 Wh" in lines[-1]
    assert lines[-1].endswith("0.81 g")


def test_csv_can_be_read_back(state_dir):
    rows = list(csv.DictReader(io.StringIO(invoke(state_dir, "report", "--csv").stdout)))
    assert {row["cause"]: float(row["energy_j"]) for row in rows}["idle"] == pytest.approx(7080)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_chart_is_a_picture_of_its_kind(state_dir, tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"chart.{ending}"
    done = invoke(state_dir, "report", "--since", "2h", "--chart", str(path))
    assert done.exit_code == 0, done.output
    if ending == "png":
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    else:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_without_matplotlib_the_line_that_installs_it_is_told(state_dir, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None\nfrom edgeslm.cli.power import power; power()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "report",
            "--state-dir",
            str(state_dir),
            "--chart",
            str(tmp_path / "a.png"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 2
    assert "pip install 'edgeslm[charts]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since", "yesterday"), "is no time"),
        (("--since", "1h", "--until", "2h"), "ends before it begins"),
        (("--csv", "--json"), "exclude each other"),
        (("--chart", "a.gif"), "neither .png nor .svg"),
    ],
)
def test_what_cannot_be_reported_is_refused(state_dir, arguments, words):
    done = invoke(state_dir, "report", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_moment_is_a_time_ago_or_a_date():
    assert moment("90m", 10_000.0) == 4600.0
    assert (
        moment("2026-05-01T00:00+00:00", 0.0) == datetime.fromisoformat("2026-05-01T00:00+00:00").timestamp()
    )
    assert moment("2026-05-01", 0.0) == datetime(2026, 5, 1).timestamp()
    with pytest.raises(UsageError):
        moment("5 parsecs", 0.0)


def test_without_a_ledger_the_state_directory_is_questioned(tmp_path):
    done = invoke(tmp_path / "nothing", "report")
    assert done.exit_code == 1
    assert "Has an agent run with this state directory?" in done.stderr


# --- explain ------------------------------------------------------------------------------------------------


class Life:
    """A steward with a clock that the test moves, on the ledger of an agent."""

    def __init__(self, state_dir: Path, budget: dict[str, Any]) -> None:
        self.now_s = 1000.0
        self.start_s = time.time() - 7200
        self.ledger = Ledger(state_dir / LEDGER_NAME, None)
        self.steward = Steward(
            load_boards()["pi-4b"],
            Budget.model_validate(budget),
            self.ledger,
            FrequencyCap(state_dir / "frequency.json", state_dir),
            threads=3,
            sizes_bytes={MODEL: 1_000_000},
            idle_w=IDLE_W,
            clock=lambda: self.now_s,
            wall_clock=lambda: self.start_s + self.now_s,
        )

    def ask(
        self, prompt_id: str, priority: str = "normal", deadline_s: float | None = None, tokens: int = 32
    ):
        return Ask(prompt_id, MODEL, priority, 16, tokens, self.now_s, deadline_s)

    def drain(self, seconds: float, power_w: float) -> None:
        self.steward.governor.note_energy(self.now_s, self.now_s + seconds, power_w * seconds)
        self.now_s += seconds

    def close(self) -> None:
        assert self.ledger.flush(self.start_s + self.now_s)
        self.ledger.close()


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    """One prompt that waited for a full window and then ran, one that was refused."""
    state = tmp_path / "state"
    life = Life(state, TIGHT)
    life.drain(60, 3.0)
    late = life.ask("late")
    plan = life.steward.plan(late)
    assert life.steward.choose([plan])[0] is None
    life.drain(40, 2.0)
    chosen, run, _ = life.steward.choose([plan])
    while chosen is None:
        life.drain(5, 2.0)
        chosen, run, _ = life.steward.choose([plan])
    assert isinstance(run, Run)
    life.steward.begin(plan, run)
    life.drain(0.5, 4.0)
    life.steward.end(Spent(20, 1.0, 0.5, complete=True))
    share = Share("prompt", MODEL, None, 2.0, 1.0, 0.5)
    ended = EndedSpan(Cause("prompt", MODEL, "late"), 0.5, 2.0, 1.0, "calibrated")
    end_s = life.start_s + life.now_s
    life.ledger.add(stretch(end_s - 0.5, 0.5, 4.0, share, ended=(ended,)), end_s, end_s)
    life.drain(60, 3.0)
    hasty = life.steward.plan(life.ask("hasty", deadline_s=life.now_s + 0.5))
    with pytest.raises(BudgetError):
        life.steward.admit(hasty, [])
    life.close()
    return state


def test_why_a_prompt_waited_and_what_it_took_is_told(decided):
    text = invoke(decided, "explain", "late").stdout
    assert "waited" in text
    assert "window 'heat' has" in text
    assert "ran" in text
    assert "1.00 J above idle in 0.5 s" in text
    assert "calibrated" in text
    assert "16 + 20 tokens" in text


def test_why_a_prompt_was_refused_is_told(decided):
    text = invoke(decided, "explain", "hasty").stdout
    assert "was refused" in text
    assert "deadline" in text
    assert "it took nothing" in text


def test_the_steps_are_machine_readable_with_their_figures(decided):
    found = json.loads(invoke(decided, "explain", "late", "--json").stdout)
    first, *_, last = found["steps"]
    assert (first["what"], last["what"]) == ("waits", "runs")
    assert first["reasons"][0]["code"] == "window_full"
    assert first["reasons"][0]["figures"]["free_j"] < 1.0
    assert (found["net_j"], found["meter_class"]) == (1.0, "calibrated")
    assert found["predicted_j"] > 0


def test_the_latest_prompts_are_listed_youngest_first(decided):
    head, *lines = invoke(decided, "explain").stdout.splitlines()
    assert head.split()[:2] == ["when", "id"]
    assert ["hasty" in line for line in lines] == [True, False]
    assert "refused" in lines[0]
    assert re.search(r"waited \d\d s, ran", lines[1])
    assert len(json.loads(invoke(decided, "explain", "--limit", "1", "--json").stdout)) == 1


def test_a_prompt_without_a_budget_has_nothing_to_explain(state_dir):
    text = invoke(state_dir, "explain", "p30").stdout
    assert "no budget was in force" in text
    assert "20.00 J above idle in 10 s (+25%)" in text


def test_an_unknown_prompt_is_refused_with_the_way_to_the_list(state_dir):
    done = invoke(state_dir, "explain", "nobody")
    assert done.exit_code == 2
    assert "edgeslm power explain lists the latest" in done.stderr


def test_what_steers_a_terminal_does_not_reach_it(tmp_path):
    with agents_ledger(tmp_path / "state") as ledger:
        ledger.note(PromptNote("evil", time.time(), "m\x1b]0;\x07@1"))
    for arguments in (("explain",), ("explain", "evil")):
        text = invoke(tmp_path / "state", *arguments).stdout
        assert "m?]0;?@1" in text
        assert not {"\x1b", "\x07"} & set(text)


def test_a_damaged_decision_is_an_error(tmp_path):
    with agents_ledger(tmp_path / "state") as ledger:
        ledger.note(PromptNote("odd", time.time(), decision='[{"what": 1}]'))
    done = invoke(tmp_path / "state", "explain", "odd")
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr


# --- check --------------------------------------------------------------------------------------------------


def test_what_a_window_holds_and_what_is_left_is_shown(state_dir):
    budget = {"windows": [{"name": "day", "limit": "96 Wh", "over": "1d"}]}
    done = invoke(state_dir, "check", "--json", budget=budget)
    found = json.loads(done.stdout)
    (window,) = found["windows"]
    assert found["idle_w"] == pytest.approx(IDLE_W)
    assert found["idle_learned"]
    assert window["limit_j"] == pytest.approx(96 * 3600)
    assert window["used_j"] == pytest.approx(7320, rel=0.01)
    assert window["left_share"] == pytest.approx(1 - 7320 / (96 * 3600), abs=0.001)


def test_the_idle_draw_is_learned_from_idle_alone(tmp_path):
    state, at_s = tmp_path / "state", time.time() - 600
    shares = (Share("prompt", MODEL, None, 900.0, 700.0, 100.0), Share("idle", None, None, 200.0, 0.0, 100.0))
    with agents_ledger(state) as ledger:
        ledger.add(stretch(at_s, 200, 5.5, *shares), at_s + 200, at_s + 200)
    assert json.loads(invoke(state, "check", "--json").stdout)["idle_w"] == pytest.approx(2.0)


def test_the_table_does_the_arithmetic(state_dir):
    budget = {"windows": [{"name": "day", "limit": "96 Wh", "over": "1d"}]}
    text = invoke(state_dir, "check", budget=budget).stdout
    assert "idle 2.00 W of the last day by the ledger" in text
    row = next(line for line in text.splitlines() if line.startswith("day"))
    assert row.split()[1:11] == ["96.00", "Wh", "1", "d", "4.00", "W", "48.00", "Wh", "48.00", "Wh"]
    assert row.endswith("98%")


def test_a_budget_below_the_idle_draw_is_refused_with_the_arithmetic(state_dir):
    done = invoke(state_dir, "check", budget={"windows": [{"name": "day", "limit": "1.5 W", "over": "1h"}]})
    assert done.exit_code == 2
    assert "the idle board alone draws 2.00 W" in done.stderr


def test_warnings_name_what_never_restrains(state_dir):
    budget = {"windows": [{"name": "loose", "limit": "100 W", "over": "1m"}]}
    assert "window 'loose' never restrains" in invoke(state_dir, "check", budget=budget).stdout


def test_a_window_too_small_for_a_usual_prompt_is_a_warning(state_dir):
    budget = {"windows": [{"name": "heat", "limit": "2.2 W", "over": "1m"}]}
    text = invoke(state_dir, "check", budget=budget).stdout
    assert "answers will be shortened or slowed" in text
    assert "a prompt took 20.00 J above idle of late" in text


def test_without_a_ledger_the_boards_table_has_to_do(tmp_path):
    done = invoke(tmp_path / "none", "check", budget=TIGHT)
    assert done.exit_code == 0
    assert "idle 2.70 W from the board's power table" in done.stdout
    assert "what was used is not known" in done.stdout


def test_a_usual_prompt_needs_some_prompts():
    row = PromptRow(PromptNote("p", 0.0, completion_tokens=4), 3.0, 2.0, 1.0, "measured")
    assert usual_prompt([row] * 4) is None
    found = usual_prompt([row] * 5)
    assert found is not None
    assert (found.mean_j, found.p90_j, found.token_j, found.seconds) == (2.0, 2.0, 0.5, 1.0)


def test_one_prompt_in_ten_may_take_more_than_the_p90():
    rows = [PromptRow(PromptNote("p", 0.0), 9.0, float(n), 1.0, "measured") for n in range(1, 11)]
    found = usual_prompt(rows)
    assert found is not None
    assert found.p90_j == 9.0
