"""What edgeslm uses of python-tuf's internal ``TrustedMetadataSet``: a new release of it has to keep this.

The behaviour behind it is what the attacks test; this says at once, and by name, what changed.
"""

from __future__ import annotations

import inspect
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import key


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(TrustedMetadataSet, name)).parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", ["self", "root_data", "envelope_type"]),
        ("update_root", ["self", "data"]),
        ("update_timestamp", ["self", "data"]),
        ("update_snapshot", ["self", "data", "trusted"]),
        ("update_delegated_targets", ["self", "data", "role_name", "delegator_name"]),
    ],
)
def test_the_methods_take_what_they_are_given(name: str, parameters: list[str]):
    assert _parameters(name) == parameters


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_the_roles_are_properties(role: str):
    assert isinstance(inspect.getattr_static(TrustedMetadataSet, role), property)


def test_expiry_is_judged_by_the_time_that_is_set():
    now = datetime.now(UTC)
    root = Root(expires=now + timedelta(days=1))
    for role in root.roles:
        root.add_key(key("root").public_key, role)
    metadata = Metadata(root)
    metadata.sign(key("root"))
    trusted = TrustedMetadataSet(metadata.to_bytes(), EnvelopeType.METADATA)
    assert isinstance(trusted.reference_time, datetime)
    trusted.reference_time = now + timedelta(days=2)
    with pytest.raises(exceptions.ExpiredMetadataError):
        trusted.update_timestamp(b"")


def test_the_errors_that_are_told_apart_are_kinds_of_one():
    for kind in (
        exceptions.ExpiredMetadataError,
        exceptions.BadVersionNumberError,
        exceptions.EqualVersionNumberError,
        exceptions.LengthOrHashMismatchError,
        exceptions.UnsignedMetadataError,
    ):
        assert issubclass(kind, exceptions.RepositoryError)
