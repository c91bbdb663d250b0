from __future__ import annotations

import os
import shutil
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import CertificateError, IdentityError
from edgeslm.fleet.ca import CertificateAuthority, CertificateRequest, key_digest, new_key, read_request
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim
from edgeslm.trust import claim as claims
from edgeslm.trust.certificate import RENEW_AFTER, CertificateFacts, renewal_due
from edgeslm.trust.identity import CANDIDATE, CERTIFICATE, CLAIM, KEY, Applicant, Identity, IdentityStore

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LIFE = timedelta(days=30)


class Fleet:
    """The other side, as far as a device can tell: the same key always gets the same certificate."""

    def __init__(self, name: str = "green") -> None:
        self.name = name
        self.authority = CertificateAuthority.create(name, NOW)
        self.certified: dict[str, str] = {}

    def claim(self) -> Claim:
        return Claim(
            fleet=self.name,
            claim=claims.new_claim_id(),
            secret=claims.new_secret(),
            host="localhost",
            port=8884,
            ca=self.authority.certificate_pem,
        )

    def issue(
        self, request_pem: str, *, name: str = "kitchen", now: datetime = NOW, fleet: str | None = None
    ) -> str:
        request = read_request(request_pem)
        return self.authority.issue_device(request, fleet or self.name, name, now, LIFE).pem

    def answer(self, applicant: Applicant) -> str:
        return self.certified.setdefault(applicant.key_sha256, self.issue(applicant.request_pem))


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore(tmp_path / "identity")


def join(store: IdentityStore, fleet: Fleet, claim: Claim | None = None) -> Identity:
    applicant = store.apply(claim or fleet.claim())
    identity = store.adopt(
        applicant, fleet.answer(applicant), host="localhost", port=8883, trust_root=b"root"
    )
    store.settle(identity)
    return identity


# --- keys ---------------------------------------------------------------------------------------------------


def test_the_key_is_readable_by_its_owner_only_and_so_is_the_claim(
    store: IdentityStore, fleet: Fleet
) -> None:
    applicant = store.apply(fleet.claim())
    for name in (KEY, CLAIM):
        assert stat.S_IMODE((applicant.directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


def test_the_request_is_signed_by_the_key_that_stays(store: IdentityStore, fleet: Fleet) -> None:
    applicant = store.apply(fleet.claim())
    assert read_request(applicant.request_pem).key_sha256 == applicant.key_sha256


def test_the_same_claim_finds_the_same_key_and_another_claim_makes_another(
    store: IdentityStore, fleet: Fleet
) -> None:
    claim = fleet.claim()
    first = store.apply(claim)
    assert IdentityStore(store.directory).apply(claim) == first
    assert store.apply(fleet.claim()).key_sha256 != first.key_sha256


def test_a_key_that_was_given_up_leaves_nothing_behind(store: IdentityStore, fleet: Fleet) -> None:
    former = store.apply(fleet.claim())
    store.apply(fleet.claim())
    assert not former.directory.exists()


# --- certificates -------------------------------------------------------------------------------------------


def test_a_device_is_who_its_certificate_says(store: IdentityStore, fleet: Fleet) -> None:
    identity = join(store, fleet)
    assert (identity.facts.fleet, identity.facts.device) == ("green", "kitchen")
    assert identity.facts.not_after_s == (NOW + LIFE).timestamp()
    assert store.current() == identity
    assert identity.trust_root.read_bytes() == b"root"
    assert store.is_settled(identity)


def test_a_device_that_has_not_joined_is_nobody(store: IdentityStore, fleet: Fleet) -> None:
    assert store.current() is None
    store.apply(fleet.claim())
    assert store.current() is None


def _foreign(fleet: Fleet, applicant: Applicant) -> str:
    return Fleet().issue(applicant.request_pem)


def _of_another_key(fleet: Fleet, applicant: Applicant) -> str:
    key = new_key().public_key()
    return fleet.authority.issue_device(
        CertificateRequest(key, key_digest(key)), "green", "kitchen", NOW, LIFE
    ).pem


def _for_a_server(fleet: Fleet, applicant: Applicant) -> str:
    return fleet.authority.issue_broker(read_request(applicant.request_pem).key, ["green/kitchen"], NOW).pem


def _of_another_fleet(fleet: Fleet, applicant: Applicant) -> str:
    return fleet.issue(applicant.request_pem, fleet="blue")


def _damaged(fleet: Fleet, applicant: Applicant) -> str:
    return fleet.issue(applicant.request_pem)[:-80]


def _rubbish(fleet: Fleet, applicant: Applicant) -> str:
    return "rubbish"


WRONG: list[Callable[[Fleet, Applicant], str]] = [
    _foreign,
    _of_another_key,
    _for_a_server,
    _of_another_fleet,
    _damaged,
    _rubbish,
]


@pytest.mark.parametrize("make", WRONG)
def test_a_wrong_certificate_is_not_adopted(
    store: IdentityStore, fleet: Fleet, make: Callable[[Fleet, Applicant], str]
) -> None:
    applicant = store.apply(fleet.claim())
    with pytest.raises(CertificateError):
        store.adopt(applicant, make(fleet, applicant), host="localhost", port=8883, trust_root=None)
    assert store.current() is None


@pytest.mark.parametrize("make", WRONG)
def test_a_wrong_certificate_is_not_even_tried_in_place_of_the_one_in_use(
    store: IdentityStore, fleet: Fleet, make: Callable[[Fleet, Applicant], str]
) -> None:
    identity = join(store, fleet)
    applicant = Applicant(identity.directory, fleet.claim(), identity.request_pem(), identity.directory.name)
    with pytest.raises(CertificateError):
        store.stage(identity, make(fleet, applicant))
    assert store.staged(identity) is None
    assert store.current() == identity


def test_certificates_are_judged_whatever_the_clock_says(store: IdentityStore, fleet: Fleet) -> None:
    # Signed for a time that is long over, or yet to come, as it looks where the clock says 1970.
    for when in (NOW - timedelta(days=3650), NOW + timedelta(days=3650)):
        applicant = store.apply(fleet.claim())
        identity = store.adopt(
            applicant, fleet.issue(applicant.request_pem, now=when), host="h", port=1, trust_root=None
        )
        assert identity.facts.not_before_s < when.timestamp() < identity.facts.not_after_s


def test_a_serial_number_is_written_as_the_fleet_writes_it(store: IdentityStore, fleet: Fleet) -> None:
    for _ in range(6):
        applicant = store.apply(fleet.claim())
        issued = fleet.authority.issue_device(read_request(applicant.request_pem), "green", "d", NOW, LIFE)
        identity = store.adopt(applicant, issued.pem, host="h", port=1, trust_root=None)
        assert identity.facts.serial == issued.serial


# --- renewal ------------------------------------------------------------------------------------------------


@given(st.floats(1e9, 2e9), st.floats(60, 1e8), st.floats(0, 1))
def test_the_next_certificate_is_due_after_two_thirds_of_the_life_of_this_one(
    begin: float, life: float, share: float
) -> None:
    facts = CertificateFacts("f", "d", "1", begin, begin + life)
    if abs(share - RENEW_AFTER) > 1e-6:
        assert renewal_due(facts, begin + share * life) == (share > RENEW_AFTER)


def test_without_a_right_clock_the_fleet_is_asked() -> None:
    facts = CertificateFacts("f", "d", "1", 1e9, 1e9 + 86_400)
    assert renewal_due(facts, 0.0)


def test_the_old_certificate_stays_until_the_new_one_is_promoted(store: IdentityStore, fleet: Fleet) -> None:
    identity = join(store, fleet)
    newer = fleet.issue(identity.request_pem(), now=NOW + timedelta(days=20))
    candidate = store.stage(identity, newer)
    assert candidate is not None
    assert store.current() == identity
    assert store.staged(identity) == candidate
    store.promote(candidate)
    assert store.current() == candidate
    assert store.staged(candidate) is None


def test_a_candidate_that_failed_is_forgotten(store: IdentityStore, fleet: Fleet) -> None:
    identity = join(store, fleet)
    store.stage(identity, fleet.issue(identity.request_pem(), now=NOW + timedelta(days=20)))
    store.discard(identity)
    assert store.staged(identity) is None
    assert store.current() == identity


def test_the_certificate_in_use_is_no_candidate_and_an_older_one_is_refused(
    store: IdentityStore, fleet: Fleet
) -> None:
    identity = join(store, fleet)
    assert store.stage(identity, (identity.directory / CERTIFICATE).read_text()) is None
    with pytest.raises(CertificateError):
        store.stage(identity, fleet.issue(identity.request_pem(), now=NOW - timedelta(days=1)))


def test_the_broker_is_reached_with_the_identity_s_files_and_the_agent_s_settings(
    store: IdentityStore, fleet: Fleet
) -> None:
    identity = join(store, fleet)
    base = BrokerConfig(host="elsewhere", username="anna", keepalive_s=77)
    config = identity.broker_config(base, certificate=CANDIDATE)
    assert (config.host, config.port, config.keepalive_s, config.username) == ("localhost", 8883, 77, None)
    assert config.cert_file == identity.directory / CANDIDATE
    context = ssl.create_default_context(cafile=str(identity.broker_config().ca_file))
    context.load_cert_chain(str(identity.broker_config().cert_file), str(identity.broker_config().key_file))


# --- joining anew -------------------------------------------------------------------------------------------


def test_joining_anew_keeps_the_former_identity_until_the_new_one_is_whole(
    store: IdentityStore, fleet: Fleet
) -> None:
    former = join(store, fleet)
    applicant = store.apply(fleet.claim())
    assert store.current() == former
    store.adopt(applicant, fleet.answer(applicant), host="h", port=1, trust_root=None)
    assert not former.directory.exists()


def test_a_damaged_directory_is_named(store: IdentityStore, fleet: Fleet) -> None:
    identity = join(store, fleet)
    (identity.directory / "fleet.json").write_text("{}")
    with pytest.raises(IdentityError) as caught:
        store.current()
    assert caught.value.path.endswith("fleet.json")
    (identity.directory / CERTIFICATE).unlink()
    with pytest.raises((IdentityError, CertificateError)):
        store.current()


def test_a_full_card_is_named_and_nothing_changes(
    store: IdentityStore, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = join(store, fleet)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(IdentityError):
            store.stage(identity, fleet.issue(identity.request_pem(), now=NOW + timedelta(days=20)))
        with pytest.raises(IdentityError):
            store.apply(fleet.claim())
    assert IdentityStore(store.directory).current() == identity


# --- power cuts ---------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """The power is gone: nothing runs any more, no clean-up either."""


@contextmanager
def power_cut_at(step: int) -> Iterator[list[int]]:
    """Cut the power at the given operation on the file system, and count the operations."""
    names = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "symlink", "rmdir")
    done = [0]
    originals = {name: getattr(os, name) for name in names}

    def wrap(name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            if done[0] >= step:
                raise PowerCutError
            done[0] += 1
            return originals[name](*arguments, **more)

        return wrapped

    try:
        for name in names:
            setattr(os, name, wrap(name))
        yield done
    finally:
        for name in names:
            setattr(os, name, originals[name])


def _live(directory: Path, fleet: Fleet, claim: Claim) -> Identity:
    """A device's life: join, then renew; from wherever it was cut off."""
    store = IdentityStore(directory)
    applicant = store.apply(claim)
    identity = store.current()
    if identity is None or identity.directory != applicant.directory:
        identity = store.adopt(applicant, fleet.answer(applicant), host="h", port=1, trust_root=b"root")
    candidate = store.staged(identity) or store.stage(
        identity, fleet.issue(identity.request_pem(), now=NOW + timedelta(days=20))
    )
    if candidate is not None:
        store.promote(candidate)
        identity = candidate
    return identity


@pytest.mark.parametrize("has_former", [False, True])
def test_a_power_cut_at_any_moment_loses_neither_key_nor_claim(
    tmp_path: Path, has_former: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "fsync", lambda _descriptor: None
    )  # only where it is called matters, and it is slow
    fleet = Fleet()
    claim, former_claim = fleet.claim(), fleet.claim()
    step, is_through = 0, False
    while not is_through:
        directory = tmp_path / f"cut-{step}"
        if has_former:
            join(IdentityStore(directory), fleet, former_claim)
        fleet.certified.clear()
        try:
            with power_cut_at(step) as done:
                _live(directory, fleet, claim)
            is_through = done[0] < step
        except PowerCutError:
            pass
        store = IdentityStore(directory)
        assert store.current() is not None or not has_former, f"cut at {step}: the former identity is lost"
        identity = _live(directory, fleet, claim)
        assert store.current() == identity
        # At most one key was ever certified under the claim: the one that is in use.
        assert set(fleet.certified) <= {identity.directory.name}, f"cut at {step}"
        store.settle(identity)
        leftovers = [
            path.name for path in store.directory.iterdir() if path.name.startswith((".new-", ".partial-"))
        ]
        assert leftovers == [], f"cut at {step}"
        shutil.rmtree(directory)
        step += 1
    assert step > 40
