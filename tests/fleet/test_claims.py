from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgeslm.codec import decode, encode
from edgeslm.errors import DeviceStateError, FleetSetupError, TopicError, UnknownDeviceError
from edgeslm.fleet.broker_files import access_text, door_access_text, hash_password, password_text
from edgeslm.fleet.ca import CertificateAuthority
from edgeslm.fleet.claims import NewClaim, issue_claim, list_claims, revoke_claim, usable_claims
from edgeslm.fleet.registry import list_audit
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import ClaimRow, DeviceRow
from edgeslm.schema.enrol import Claim
from edgeslm.schema.fleet import FleetBroker, FleetConfig
from edgeslm.trust.claim import broker_password, pem_pin, proof_key, read_token

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CONFIG = FleetConfig(name="green", broker=FleetBroker(host="broker.local"))
AUTHORITY = CertificateAuthority.create("green", NOW).certificate_pem


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "fleet.db"))
    yield opened
    opened.close()


def issue(
    store: Store, device: str | None = None, *, replaces: bool = False, life: timedelta = timedelta(hours=1)
) -> NewClaim:
    with store.write() as session:
        return issue_claim(
            session,
            CONFIG,
            AUTHORITY,
            device=device,
            profile="kiosk",
            replaces=replaces,
            life=life,
            actor="anna",
            now=NOW,
        )


def usable(store: Store, now: datetime = NOW) -> set[str]:
    with store.read() as session:
        return {row.claim for row in usable_claims(session, now)}


def test_a_claim_holds_all_that_a_device_needs(store: Store) -> None:
    new = issue(store, "kitchen")
    claim = decode(Claim, encode(new.claim))
    assert claim == new.claim
    assert (claim.fleet, claim.device, claim.host, claim.port, claim.ca) == (
        "green",
        "kitchen",
        "broker.local",
        8884,
        AUTHORITY,
    )
    token = read_token(str(new.token))
    assert (token.claim, token.secret, token.pin) == (claim.claim, claim.secret, pem_pin(AUTHORITY))


def test_the_store_does_not_keep_the_secret(store: Store, tmp_path: Path) -> None:
    new = issue(store)
    store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert new.claim.claim.encode() in kept
    assert new.claim.secret.encode() not in kept
    assert broker_password(new.claim.secret).encode() not in kept


def test_the_broker_s_password_is_kept_as_mosquitto_keeps_it(store: Store) -> None:
    new = issue(store)
    with store.read() as session:
        kept = session.get_one(ClaimRow, new.claim.claim)
        empty, kind, rounds, salt, digest = kept.password_hash.split("$")
        assert kept.proof_key == proof_key(new.claim.secret)
    password = broker_password(new.claim.secret)
    expected = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), int(rounds), 64)
    assert (empty, kind, base64.b64decode(digest)) == ("", "7", expected)
    assert hash_password("x") != hash_password("x")


def test_an_open_claim_expires_and_a_bound_one_does_not(store: Store) -> None:
    new = issue(store)
    later = NOW + timedelta(hours=1)
    assert usable(store) == {new.claim.claim}
    assert usable(store, later - timedelta(seconds=1)) == {new.claim.claim}
    assert usable(store, later) == set()
    with store.write() as session:
        session.get_one(ClaimRow, new.claim.claim).state = "bound"
    assert usable(store, later) == {new.claim.claim}


def test_a_claim_that_is_taken_back_cannot_be_used_and_not_be_taken_back_again(store: Store) -> None:
    new = issue(store)
    with store.write() as session:
        revoke_claim(session, new.claim.claim, actor="anna", now=NOW)
    assert usable(store) == set()
    with store.read() as session:
        assert [one.state for one in list_claims(session, NOW)] == ["revoked"]
    with pytest.raises(DeviceStateError), store.write() as session:
        revoke_claim(session, new.claim.claim, actor="anna", now=NOW)
    with pytest.raises(UnknownDeviceError), store.write() as session:
        revoke_claim(session, "000000", actor="anna", now=NOW)


def test_a_claim_for_a_device_in_use_has_to_say_that_it_replaces_it(store: Store) -> None:
    with store.write() as session:
        session.add(
            DeviceRow(name="kitchen", standing="active", key_sha256="0" * 64, notes="", created_at=NOW)
        )
        session.add(
            DeviceRow(name="cellar", standing="revoked", key_sha256="1" * 64, notes="", created_at=NOW)
        )
    with pytest.raises(DeviceStateError, match="--replace"):
        issue(store, "kitchen")
    issue(store, "kitchen", replaces=True)
    issue(store, "cellar")


@pytest.mark.parametrize(
    ("device", "error"), [("pool", TopicError), ("Kitchen", TopicError), ("d" * 59, FleetSetupError)]
)
def test_a_claim_for_an_impossible_name_is_refused(store: Store, device: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        issue(store, device)
    assert usable(store) == set()


def test_who_made_a_claim_is_on_record_without_its_secret(store: Store) -> None:
    new = issue(store, "kitchen")
    with store.read() as session:
        (entry,) = list_audit(session)
    assert (entry.actor, entry.action, entry.subject) == ("anna", "claim", "kitchen")
    assert new.claim.secret not in entry.model_dump_json()


def test_the_door_s_passwords_are_those_of_the_claims() -> None:
    passwords = password_text("green", [("abcdef", "$7$x"), ("ghjkmn", "$7$y")])
    assert passwords == "green/enrol/abcdef:$7$x\ngreen/enrol/ghjkmn:$7$y\n"


def test_the_access_lists_do_not_grow_with_devices_and_claims() -> None:
    access = access_text("green")
    assert "pattern read edgeslm/v1/%u/prompt\n" in access
    assert "pattern write edgeslm/v1/%u/availability\n" in access
    users = [line for line in access.splitlines() if line.startswith("user")]
    assert users == ["user operator", "user door", "user home_assistant"]
    assert [line for line in door_access_text().splitlines() if line.startswith("pattern")] == [
        "pattern read edgeslm/v1/%u/reply",
        "pattern write edgeslm/v1/%u/request",
    ]
