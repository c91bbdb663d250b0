"""Times as they are typed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from click.testing import CliRunner

from edgeslm.cli.times import duration, moment
from edgeslm.clock import utc_now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("1.5h", 5400),
        ("2 min", 120),
        ("7d", 604_800),
        ("1w", 604_800),
    ],
)
def test_a_span_has_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "0s", "-1s", "nan", "1y", "1e9d", "9999999d", "tomorrow"])
def test_refuses_what_is_no_span(text: str) -> None:
    with pytest.raises(ValueError, match="no span of time"):
        duration(text)


def test_a_moment_is_how_long_ago_or_a_date() -> None:
    assert abs(moment("2h") - (utc_now() - timedelta(hours=2))) < timedelta(minutes=1)
    assert moment("2026-01-31T12:00+00:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert moment("2026-01-31").tzinfo is UTC


@pytest.mark.parametrize("text", ["", "10", "yesterday", "0001-01-01T00:00+14:00", "0h"])
def test_what_is_no_moment_is_refused_with_what_to_write(text: str) -> None:
    @click.command()
    @click.option("--since", type=moment)
    def command(since: datetime) -> None:
        click.echo(since)

    done = CliRunner().invoke(command, ["--since", text])
    assert (done.exit_code, "such as" in done.output) == (2, True)
