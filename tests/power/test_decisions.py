from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import LedgerError
from edgeslm.power.decisions import FiledReason, FiledStep, read_decision

REASON = {"code": "fits", "text": "it fits", "subject": "heat", "need_j": 2.0}


def test_steps_are_read_back_with_their_figures():
    text = json.dumps([{"after_s": 1.5, "what": "waits", "reasons": [REASON]}])
    assert read_decision(text) == (
        FiledStep(1.5, "waits", (FiledReason("fits", "it fits", "heat", {"need_j": 2.0}),)),
    )


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        [1],
        [{}],
        [{"after_s": "1", "what": "runs", "reasons": []}],
        [{"after_s": 1, "what": "runs", "reasons": "none"}],
        [{"after_s": 1, "what": "runs", "reasons": [{}]}],
        [{"after_s": 1, "what": "runs", "reasons": [REASON | {"need_j": "much"}]}],
        [{"after_s": True, "what": "runs", "reasons": []}],
    ],
)
def test_what_is_of_another_form_is_an_error(value):
    with pytest.raises(LedgerError):
        read_decision(json.dumps(value))


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(LedgerError):
        read_decision(text)
