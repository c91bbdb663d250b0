from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgeslm.fleet import doctor, doctor_devices
from edgeslm.fleet.doctor import (
    BrokerFact,
    CertificateFact,
    FileFact,
    Finding,
    PendingFact,
    RoleFact,
    StoreFact,
)
from edgeslm.fleet.doctor_devices import AssignmentFact
from edgeslm.schema.fleet import DeviceFacts, EnrolmentRecord
from edgeslm.schema.rollout import RolloutPlan, RolloutView

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ROOT = FileFact("/fleet", 0o700)


def device(name: str, **facts: Any) -> DeviceFacts:
    known = {
        "standing": "active",
        "key_sha256": "0" * 64,
        "created_at": NOW - 90 * DAY,
        "last_seen_at": NOW - HOUR,
        "expires_at": NOW + 20 * DAY,
        "presence": "online",
        "agent": "0.2.0",
    }
    return DeviceFacts.model_validate({"name": name, **known, **facts})


def role(name: str, **facts: Any) -> RoleFact:
    alone = name in {"timestamp", "snapshot", "assignments"}
    known = {
        "expires_at": NOW + 300 * DAY,
        "due": False,
        "signs_alone": alone,
        "key": "here" if alone else "elsewhere",
    }
    return RoleFact(role=name, **{**known, **facts})


def assignment(name: str, **facts: Any) -> AssignmentFact:
    known = {
        "seq": 5,
        "published_seq": 5,
        "issued_at": NOW - 2 * DAY,
        "expires_at": NOW + 5 * DAY,
        "renews": True,
        "followed": 5,
    }
    return AssignmentFact(device=name, **{**known, **facts})


def said(finding: Finding, status: str, *words: str, devices: Sequence[str] = ()) -> None:
    """It is of that status, names all of that, and says what to do unless all is well."""
    assert finding.status == status, finding
    for word in words:
        assert word in f"{finding.detail} {finding.advice}", finding
    assert finding.devices == tuple(devices)
    assert (finding.advice is None) == (status == "ok"), finding


# --- the machine ----------------------------------------------------------------------------------------------


def test_a_key_that_others_can_read_is_essential_and_one_that_the_directory_hides_is_not() -> None:
    good, wide, store = FileFact("ca.key", 0o600), FileFact("ca.key", 0o640), FileFact("fleet.db", 0o644)
    said(doctor.check_files(ROOT, [good], store), "ok")
    said(doctor.check_files(ROOT, [wide], store), "warning", "ca.key", "chmod go= ca.key")
    said(doctor.check_files(FileFact("/fleet", 0o755), [good], None), "warning", "/fleet")
    said(doctor.check_files(FileFact("/fleet", 0o755), [wide], None), "failed", "ca.key")
    said(doctor.check_files(FileFact("/fleet", 0o755), [good], store), "failed", "fleet.db")
    said(doctor.check_files(ROOT, [FileFact("ca.key", None)], store), "failed", "missing: ca.key")


@pytest.mark.parametrize(("free_mb", "status"), [(100, "failed"), (500, "warning"), (5000, "ok")])
def test_a_disk_without_room_is_essential(free_mb: int, status: str) -> None:
    said(doctor.check_disk(free_mb, "/fleet"), status, f"{free_mb:,} MB free at /fleet")


def test_a_clock_that_cannot_be_right_is_essential() -> None:
    def check(**facts: Any) -> Finding:
        known: dict[str, Any] = {"is_set": True, "newest": NOW - HOUR, "ahead_s": {}}
        return doctor.check_clock(NOW, **{**known, **facts})

    said(check(), "ok", "2026-11-25 12:00:00 UTC")
    said(check(newest=None), "ok")
    said(check(is_set=False), "failed", "cannot be")
    said(check(newest=NOW + HOUR), "failed", "13:00:00")
    said(check(ahead_s={"a": 0.0, "b": 0.4, "c": 300.0}), "warning", "c", devices=["c"])
    said(check(ahead_s={"a": 40.0, "b": 41.0, "c": 0.0}), "warning", "3 devices are ahead", "40 s")
    said(check(ahead_s={"a": 0.0, "b": 0.0, "c": 0.0}), "ok", "3 devices")


def test_a_damaged_store_is_essential() -> None:
    said(doctor.check_store(StoreFact("fleet.db", "0005", None, 3)), "ok", "revision 0005", "3 devices")
    said(doctor.check_store(StoreFact("fleet.db", "0005", "page 3", 3)), "failed", "page 3", "restore")


# --- keys, certificates, releases -----------------------------------------------------------------------------


def test_certificates_are_told_of_before_they_end() -> None:
    def check(days: float) -> Finding:
        far = CertificateFact("authority", NOW + 5000 * DAY)
        return doctor.check_certificates([far, CertificateFact("broker", NOW + days * DAY)], NOW)

    said(check(400), "ok", "broker, in 400 days")
    said(check(30), "warning", "broker, in 30 days")
    said(check(-1), "failed", "that of the broker is over since 2026-11-24")


def test_an_offline_key_without_a_passphrase_on_this_machine_is_essential() -> None:
    online = [role("timestamp"), role("assignments")]
    said(doctor.check_keys([]), "ok", "no releases yet")
    said(doctor.check_keys([*online, role("root")]), "ok", "offline: root")
    said(doctor.check_keys([*online, role("root", key="encrypted")]), "warning", "Move offline", "root")
    said(doctor.check_keys([*online, role("root", key="here")]), "failed", "without a passphrase", "root")
    said(doctor.check_keys([role("timestamp", key="elsewhere")]), "warning", "--keys", "timestamp")


def test_a_role_that_is_over_is_essential_and_one_that_is_due_says_who_has_to_sign() -> None:
    def check(*roles: RoleFact, pending: Sequence[PendingFact] = ()) -> Finding:
        return doctor.check_releases(roles, pending, NOW)

    said(check(), "ok", "no releases yet")
    said(check(role("root"), role("timestamp", expires_at=NOW + DAY)), "ok", "timestamp, in 24 h")
    said(check(role("root", expires_at=NOW - DAY)), "failed", "root is over", "release renew root --key")
    said(check(role("timestamp", expires_at=NOW - DAY)), "failed", "signs them anew by itself")
    said(
        check(role("targets", due=True, expires_at=NOW + 20 * DAY)),
        "warning",
        "due: targets",
        "renew targets",
    )
    said(check(role("timestamp", due=True, expires_at=NOW + 12 * HOUR)), "ok")
    said(check(role("timestamp", due=True, expires_at=NOW + HOUR)), "warning", "is it running?")
    said(check(role("root"), pending=[PendingFact("targets", 1)]), "warning", "signatures for targets")
    said(check(role("root"), pending=[PendingFact("targets", 0)]), "warning", "release publish")
    same = NOW + 300 * DAY
    said(check(role("a", expires_at=same), role("b", expires_at=same)), "ok")


# --- the broker -----------------------------------------------------------------------------------------------


def test_a_broker_that_is_away_or_lets_the_revoked_in_is_essential() -> None:
    said(doctor.check_broker(BrokerFact("h:1", None, (), 0)), "ok", "h:1 answers")
    said(
        doctor.check_broker(BrokerFact("h:1", "h:1 cannot be reached", (), 0)), "failed", "cannot be reached"
    )
    said(doctor.check_broker(BrokerFact("h:1", None, ("acl",), 0)), "warning", "acl", "fleet serve")
    said(doctor.check_broker(BrokerFact("h:1", "away", (), 2)), "failed", "2 revoked certificates")


# --- devices --------------------------------------------------------------------------------------------------


def test_who_was_silent_for_long_or_never_there_is_named() -> None:
    devices = [
        device("on", last_seen_at=NOW - 30 * DAY),
        device("gone", presence="offline", last_seen_at=NOW - 8 * DAY),
        device("night", presence="offline", last_seen_at=NOW - DAY),
        device("never", presence=None, last_seen_at=None),
        device("new", presence=None, last_seen_at=None, created_at=NOW - HOUR),
    ]
    (found,) = doctor_devices.check_presence(devices, None, NOW)
    said(found, "warning", "1 of 5 online", "gone", "never", devices=["gone", "never"])


def test_the_broker_knows_better_than_the_store_who_is_there() -> None:
    devices = [device("a"), device("b", presence="offline", last_seen_at=NOW - 8 * DAY)]
    seen, service = doctor_devices.check_presence(devices, {"a": "online", "b": "online"}, NOW)
    said(seen, "ok", "2 of 2 online")
    said(service, "warning", "b", "fleet serve", devices=["b"])
    _, service = doctor_devices.check_presence(devices[:1], {"a": "online"}, NOW)
    said(service, "ok")


def test_certificates_of_devices_are_told_of_when_they_were_not_renewed_in_time() -> None:
    def check(**facts: Any) -> Finding:
        return doctor_devices.check_device_certificates([device("a"), device("b", **facts)], 30, NOW)

    said(check(), "ok")
    said(check(expires_at=NOW + 4 * DAY), "warning", "last sixth", devices=["b"])
    said(check(expires_at=NOW - DAY), "warning", "over: b", "fleet claim", devices=["b"])


def test_clones_and_quarantine_are_named() -> None:
    said(doctor_devices.check_findings([device("a")]), "ok")
    found = doctor_devices.check_findings([device("a", finding="cloned"), device("b", quarantine="300 W")])
    said(found, "warning", "a is cloned", "in quarantine: b", devices=["a", "b"])


def test_versions_of_the_agent_are_put_in_order() -> None:
    said(doctor_devices.check_agents([device("a")]), "ok", "0.2.0 on 1")
    said(doctor_devices.check_agents([device("a", agent=None)]), "ok")
    mixed = [device("a", agent="0.9.0"), device("b", agent="0.10.0"), device("c", agent="what?")]
    said(
        doctor_devices.check_agents(mixed),
        "warning",
        "3 versions",
        "0.9.0 on 1, 0.10.0 on 1",
        devices=["a", "c"],
    )


def test_assignments_are_told_of_that_do_not_arrive_are_not_followed_end_or_failed() -> None:
    def check(online: bool = True, **facts: Any) -> Finding:
        return doctor_devices.check_assignments([assignment("a", **facts)], {"a"} if online else set(), NOW)

    said(doctor_devices.check_assignments([], (), NOW), "ok", "nothing is assigned")
    said(check(), "ok", "assigned to 1")
    said(check(published_seq=4), "warning", "does not have them", devices=["a"])
    said(check(published_seq=4, issued_at=NOW, followed=4), "ok")
    said(check(followed=4), "warning", "not taken up by a", devices=["a"])
    said(check(followed=4, issued_at=NOW - HOUR / 2), "ok")
    said(check(online=False, followed=None), "ok")
    said(check(expires_at=NOW + HOUR), "warning", "over, or nearly", devices=["a"])
    said(check(expires_at=NOW - HOUR, renews=False), "ok")
    said(check(expires_at=NOW - HOUR, renews=False, followed=4), "warning", "over", devices=["a"])
    said(check(failed="m 2.0.0 rolled back"), "warning", "a (m 2.0.0 rolled back)", "retry", devices=["a"])


# --- what waits for somebody ----------------------------------------------------------------------------------


def test_who_waits_to_join_is_named_with_how_long() -> None:
    waiting = EnrolmentRecord(
        claim="c", device="new", state="pending", reason=None, board=None, serial=None, key_sha256="0" * 64,
        agent="0.2.0", requested_at=NOW - 3 * DAY, decided_at=None, decided_by=None,
    )  # fmt: skip
    said(doctor_devices.check_pending([], NOW), "ok")
    said(doctor_devices.check_pending([waiting], NOW), "warning", "new", "3 days", devices=["new"])


def rollout(phase: str, reason: str = "", following: str = "") -> RolloutView:
    return RolloutView.model_construct(
        id=7, release="m@2.0.0", phase=phase, reason=reason, next=following, devices=10, passed=3,
        plan=RolloutPlan.model_construct(),
    )  # fmt: skip


def test_a_rollout_that_waits_for_a_person_says_for_what() -> None:
    said(doctor_devices.check_rollouts([], is_carried_out=False), "ok")
    said(
        doctor_devices.check_rollouts([rollout("running")], is_carried_out=True), "ok", "7 (m@2.0.0): 3 of 10"
    )
    said(
        doctor_devices.check_rollouts([rollout("running")], is_carried_out=False),
        "warning",
        "nobody carries it out",
    )
    paused = rollout("paused", "2 of 10 failed", "edgeslm fleet rollout resume 7")
    said(
        doctor_devices.check_rollouts([paused], is_carried_out=True), "warning", "2 of 10 failed", "resume 7"
    )


def test_many_are_named_by_some_and_counted() -> None:
    devices = [device(f"d{number}", presence="offline", last_seen_at=NOW - 9 * DAY) for number in range(8)]
    (found,) = doctor_devices.check_presence(devices, None, NOW)
    assert "d4 and 3 more" in found.detail
    assert len(found.devices) == 8


def test_only_what_is_essential_fails() -> None:
    ok, warning = Finding(name="a", status="ok", detail=""), Finding(name="b", status="warning", detail="")
    assert not doctor.is_failed([ok, warning])
    assert doctor.is_failed([ok, Finding(name="c", status="failed", detail="")])
