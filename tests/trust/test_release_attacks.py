"""Every attack of the benchmark, against the client that devices run; and that the counting can fail."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

# The rig is the benchmark's; pytest's importlib mode leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust import ATTACKS, Attack, run_attack
from benchmarks.update_trust_rig import Rig
from edgeslm.errors import MetadataSignatureError, MetadataVersionError


@pytest.mark.parametrize("tried", ATTACKS, ids=lambda tried: tried.name.replace(" ", "-"))
def test_is_refused_by_name_leaves_nothing_and_does_no_harm(tried: Attack):
    assert run_attack(tried).fault is None


def test_there_are_attacks_of_every_kind():
    kinds = {tried.refused_by.__name__ for tried in ATTACKS}
    assert len(ATTACKS) >= 70
    assert len(kinds) >= 18


def _judged(strike, refused_by=MetadataVersionError) -> str | None:
    return run_attack(Attack("an attack", refused_by, strike, frozenset(), False)).fault


def test_an_attack_that_goes_through_is_counted_as_such():
    def harmless(made: Rig) -> Generator[None]:
        yield
        made.device().refresh()

    assert "raised nothing" in str(_judged(harmless))


def test_a_refusal_for_another_reason_does_not_count():
    def unsigned(made: Rig) -> Generator[None]:
        yield
        made.forge_timestamp(lambda timestamp: None)
        made.device().refresh()

    assert _judged(unsigned, MetadataSignatureError) is None
    assert "MetadataSignatureError" in str(_judged(unsigned))


def test_a_refusal_that_leaves_something_behind_does_not_count():
    def littering(made: Rig) -> Generator[None]:
        yield
        made.storage.write("9.lamp.json", b"{}")
        raise MetadataVersionError("refused")

    assert _judged(littering) == "changed 9.lamp.json"


def test_a_refusal_that_harms_the_device_does_not_count():
    def poisonous(made: Rig) -> Generator[None]:
        made.clock.at = made.clock.at.replace(year=2050)
        yield
        raise MetadataVersionError("refused")

    # The clock stays in 2050 for the honest repository too, whose root has then expired.
    assert "does not take an honest release afterwards" in str(_judged(poisonous))
