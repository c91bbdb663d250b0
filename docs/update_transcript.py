"""Rewrite the demo transcript in README.md with what the demo really prints.

    python docs/update_transcript.py [--commands 6] [--even-if-wrong]

Runs ``edgeslm demo --once`` with this Python and replaces what stands between the markers
``<!-- transcript:demo -->`` and ``<!-- /transcript -->``: the first few commands, and the figures of the
whole. What is left out is marked by ``...``; nothing is reworded. A run with wrong answers is not written
down unless asked for.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- transcript:demo -->", "<!-- /transcript -->"
SUMMARY_LINES = 3


def shorten(output: str, command_count: int) -> str:
    """The first `command_count` commands of a demo's output, and its figures.

    Raises:
        ValueError: the output does not look like a demo's.
    """
    blocks = [block for block in re.split(r"\n\n+", output.strip()) if block]
    commands = [block for block in blocks if block.startswith("> ")]
    summary = next((block for block in blocks if re.match(r"\d+ of \d+ commands", block)), None)
    if not commands or summary is None:
        raise ValueError("the demo printed no commands, or no figures")
    shown = commands[:command_count]
    rest = ["..."] if len(commands) > len(shown) else []
    figures = "\n".join(summary.splitlines()[:SUMMARY_LINES])
    return "\n\n".join([*shown, *rest, figures])


def replace_block(text: str, transcript: str) -> str:
    """`text` with `transcript` between the markers.

    Raises:
        ValueError: the markers are not there exactly once.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"exactly one block from {BEGIN} to {END} is needed")
    block = f"{BEGIN}\n```text\n$ edgeslm demo --once\n{transcript}\n```\n{END}"
    return pattern.sub(lambda _: block, text)


def main() -> int:
    """Run the demo and rewrite the block."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--commands", type=int, default=6, help="commands to show (default: 6)")
    parser.add_argument(
        "--even-if-wrong", action="store_true", help="write down a run with wrong answers too"
    )
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "edgeslm", "demo", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not arguments.even_if_wrong:
        sys.stderr.write(
            f"{done.stdout}{done.stderr}\nthe demo got something wrong: README.md is left alone\n"
        )
        return 1
    README.write_text(
        replace_block(README.read_text("utf-8"), shorten(done.stdout, arguments.commands)), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
