from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from edgeslm.clock import BUILT_AT, utc_now
from edgeslm.trust.clock import Remembered, issued_time, trusted_time

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
MAYBE = st.none() | TIMES
SIGNERS = ("a", "b")


def test_a_clock_that_is_right_is_believed():
    now = BUILT_AT + timedelta(days=100)
    assert trusted_time(now, Remembered(), root_issued=BUILT_AT, signers=SIGNERS).source == "wall"


def test_the_code_is_not_from_the_future():
    assert utc_now() >= BUILT_AT


def test_a_clock_at_1970_is_put_right_by_what_was_signed():
    signed = BUILT_AT + timedelta(days=50)
    remembered = Remembered(signed=signed, signers=SIGNERS)
    found = trusted_time(datetime(1970, 1, 1, tzinfo=UTC), remembered, root_issued=None, signers=SIGNERS)
    assert (found.at, found.source) == (signed, "signed")


def test_what_keys_signed_that_were_rotated_out_says_nothing():
    remembered = Remembered(signed=BUILT_AT + timedelta(days=36_500), signers=("stolen",))
    found = trusted_time(BUILT_AT, remembered, root_issued=None, signers=SIGNERS)
    assert found.at == BUILT_AT


@given(wall=TIMES, remembered_wall=MAYBE, signed=MAYBE, root_issued=MAYBE)
def test_the_time_is_never_before_anything_that_is_known_to_have_passed(
    wall: datetime, remembered_wall: datetime | None, signed: datetime | None, root_issued: datetime | None
):
    remembered = Remembered(wall=remembered_wall, signed=signed, signers=SIGNERS)
    found = trusted_time(wall, remembered, root_issued=root_issued, signers=SIGNERS)
    known = [at for at in (wall, BUILT_AT, remembered_wall, signed, root_issued) if at is not None]
    assert found.at == max(known)
    assert (found.source == "wall") == (found.at == wall)


@given(st.none() | st.text() | st.integers() | st.lists(st.text()))
def test_what_is_no_time_is_none(value: object):
    assert issued_time({"x-edgeslm-issued": value}) is None


def test_reads_the_time_that_is_written():
    assert issued_time({"x-edgeslm-issued": "2026-12-01T12:00:00Z"}) == datetime(2026, 12, 1, 12, tzinfo=UTC)
