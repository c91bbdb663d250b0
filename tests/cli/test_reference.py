"""docs/cli.md is what `--help` says."""

from __future__ import annotations

from pathlib import Path

from edgeslm.cli.reference import reference

CLI_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_page_is_what_help_says():
    assert CLI_PAGE.read_text("utf-8") == reference(), "stale: run `make docs-cli`"
