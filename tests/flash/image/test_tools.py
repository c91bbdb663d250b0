"""Running programs of the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.errors import ToolFailedError, ToolMissingError
from edgeslm.flash.image.tools import PACKAGES, find_tool, run_tool


def test_programs_are_found_where_an_ordinary_path_does_not_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    for name in PACKAGES:
        assert Path(find_tool(name)).exists()


def test_a_missing_program_is_named_with_what_to_install() -> None:
    with pytest.raises(ToolMissingError) as caught:
        run_tool(["no-such-program"])
    assert caught.value.tool == "no-such-program"
    assert "apt install" in (caught.value.hint or "")


def test_nothing_of_this_machine_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    said = run_tool(["env"], time_s=42, says=True)
    assert "SECRET" not in said
    assert "LC_ALL=C.UTF-8" in said
    assert "SOURCE_DATE_EPOCH=42" in said


def test_a_bad_end_is_an_error_with_what_was_said() -> None:
    with pytest.raises(ToolFailedError, match="ended with 3: oh no") as caught:
        run_tool(["sh", "-c", "echo oh no >&2; exit 3"])
    assert (caught.value.tool, caught.value.exit_status, caught.value.output) == ("sh", 3, "oh no")
    assert run_tool(["sh", "-c", "echo fine >&2; exit 3"], good=(0, 3)) == "fine"


def test_only_the_end_of_much_output_is_kept() -> None:
    said = run_tool(["sh", "-c", "yes | head -c 100000; echo last"], says=True)
    assert len(said) < 10_000
    assert said.endswith("last")


def test_a_program_that_does_not_end_is_ended() -> None:
    with pytest.raises(ToolFailedError, match="did not end within") as caught:
        run_tool(["sleep", "60"], timeout_s=0.2)
    assert caught.value.exit_status is None


def test_a_program_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "odd").chmod(0o755)
    with pytest.raises(ToolFailedError, match="cannot start"):
        run_tool([str(tmp_path / "odd")])


def test_a_program_cannot_ask(tmp_path: Path) -> None:
    assert run_tool(["sh", "-c", "read answer || echo nobody answers >&2"]) == "nobody answers"
