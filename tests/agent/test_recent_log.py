from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgeslm.agent.recent_log import LINE_CHARS, LINES, RecentLog


@pytest.fixture
def recent() -> Iterator[RecentLog]:
    ours = logging.getLogger("edgeslm")
    level = ours.level
    log = RecentLog()
    log.install()
    yield log
    log.uninstall()
    ours.setLevel(level)


def test_the_latest_lines_are_kept_and_no_more(recent: RecentLog) -> None:
    log = logging.getLogger("edgeslm.test")
    for number in range(LINES + 50):
        log.info("line %d %s", number, "x" * 2 * LINE_CHARS)
    lines = recent.lines()
    assert len(lines) == LINES
    assert "line 50 " in lines[0]
    assert max(map(len, lines)) == LINE_CHARS
    log.debug("not this")
    assert "not this" not in recent.lines()[-1]


def test_a_record_that_cannot_be_shown_breaks_nobody(
    recent: RecentLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("edgeslm.test").info("%d", "no number")
    logging.getLogger("edgeslm.test").info("after")
    assert recent.lines()[-1].endswith("after")


def test_what_is_shown_on_stderr_stays_as_it_was() -> None:
    code = (
        "import logging; from edgeslm.cli.output import configure_logging\n"
        "from edgeslm.agent.recent_log import RecentLog\n"
        "configure_logging(0); recent = RecentLog(); recent.install()\n"
        "logging.getLogger('edgeslm.x').info('quiet'); logging.getLogger('edgeslm.x').warning('loud')\n"
        "print(len(recent.lines()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loud" in done.stderr
    assert "quiet" not in done.stderr
    assert done.stdout.strip() == "2"
