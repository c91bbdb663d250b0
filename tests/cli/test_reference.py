import subprocess
import sys
from pathlib import Path

CLI_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_page_is_what_help_says() -> None:
    # In a process of its own: click remembers the help option of a command as it was first asked for.
    said = subprocess.run(
        [sys.executable, "-m", "edgeslm.cli.reference"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    assert CLI_PAGE.read_text("utf-8") == said, "stale: run `make docs-cli`"
