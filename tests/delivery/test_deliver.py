"""A package comes by the way that moves least, and by another when that one fails."""

from __future__ import annotations

import shutil
from collections import namedtuple
from datetime import datetime

import pytest

from edgeslm.delivery.deliver import deliver
from edgeslm.delivery.fetcher import Fetcher
from edgeslm.delivery.files import RESERVE_BYTES
from edgeslm.delivery.policy import Conditions
from edgeslm.errors import (
    DeliveryPolicyError,
    DeliveryRoomError,
    DeltaError,
    NoSourceError,
    SourceError,
    StoreError,
)
from edgeslm.schema.delivery import BLOCK_BYTES, DeliveryPolicy, DeliveryTarget, DeltaRef

BASE = "ba" * 32
NOW = datetime(2026, 3, 4, 12, 0)


@pytest.fixture
def world(tmp_path, library, clock):
    """A package of 20 blocks, and a "delta" of two that the stand-in for the model layer turns into it."""

    class World:
        package = library.add(20 * BLOCK_BYTES)
        delta = library.add(2 * BLOCK_BYTES, seed=2)
        target = DeliveryTarget(package=package, deltas=(DeltaRef(base_sha256=BASE, blob=delta),))
        fetcher = Fetcher(tmp_path / "arriving", now=clock.now)
        metered = False
        refuse: Exception | None = None

        def __init__(self):
            self.rebuilt = []

        def rebuild(self, delta, base_sha256, out, blob):
            assert delta.read_bytes() == library.data(self.delta.sha256)
            if self.refuse is not None:
                raise self.refuse
            self.rebuilt.append(base_sha256)
            out.write_bytes(library.data(blob.sha256))

        def deliver(self, *sources, have=(BASE,), target=None, **policy):
            path = deliver(
                target or self.target, sources, DeliveryPolicy(**policy), self.fetcher, have=have,
                rebuild=self.rebuild, conditions=lambda: Conditions(metered=self.metered, now=NOW),
                progress=lambda _: None, cancelled=clock,
            )  # fmt: skip
            assert path.read_bytes() == library.data(self.package.sha256)
            names = {found.name for found in self.fetcher.directory.iterdir()}
            assert names == {".lock", f"{self.package.sha256}.blob"}
            return path

    return World()


def blobs(source) -> list[str]:
    return [sha256 for sha256, _ in source.asked]


def test_a_delta_is_taken_where_its_base_is_installed(world, scripted):
    source = scripted()
    world.deliver(source)
    assert blobs(source) == [world.delta.chunks_sha256, world.delta.sha256]
    assert world.rebuilt == [BASE]


def test_the_whole_is_taken_where_the_base_is_not_installed(world, scripted):
    source = scripted()
    world.deliver(source, have=("00" * 32,))
    assert blobs(source) == [world.package.chunks_sha256, world.package.sha256]
    assert world.rebuilt == []


def test_a_delta_that_is_of_no_use_leaves_it_to_the_whole(world, scripted):
    world.refuse = DeltaError("rebuilds another file", path="x")
    source = scripted()
    world.deliver(source)
    assert world.package.sha256 in blobs(source)


def test_a_delta_that_nobody_has_leaves_it_to_the_whole(world, scripted, library):
    (library.directory / world.delta.sha256).unlink()
    world.deliver(scripted())


def test_a_full_disk_is_no_reason_to_take_the_whole(world, scripted):
    world.refuse = StoreError("no room")
    source = scripted()
    with pytest.raises(StoreError):
        world.deliver(source)
    assert world.package.sha256 not in blobs(source)


def test_room_is_needed_for_the_delta_the_package_and_the_unpacked_package(world, scripted, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    package, delta = world.package.size_bytes, world.delta.size_bytes
    for have, needed_bytes in (((BASE,), delta + 2 * package), ((), 2 * package)):
        with pytest.raises(DeliveryRoomError) as caught:
            world.deliver(scripted(), have=have)
        assert caught.value.needed_bytes == needed_bytes + RESERVE_BYTES


def test_a_stick_goes_before_the_network_and_without_a_stick_the_network_goes_on(world, scripted):
    stick, far = scripted(reach="local"), scripted()
    world.deliver(far, stick)
    assert far.asked == []


def test_over_a_metered_link_a_neighbour_is_asked_and_given_up_in_time(world, scripted, clock):
    def down(*_):
        raise SourceError("refused", source="neighbour")

    world.metered = True
    near, far = scripted(down, reach="lan"), scripted()
    world.deliver(near, far, metered="delta")
    assert blobs(far) == [world.delta.chunks_sha256, world.delta.sha256]
    assert clock.s - 1000 < 400


def test_nothing_is_asked_of_a_link_that_the_policy_keeps_free(world, scripted):
    world.metered = True
    far = scripted()
    with pytest.raises(DeliveryPolicyError):
        world.deliver(far, metered="refuse")
    assert far.asked == []


def test_a_link_that_becomes_metered_ends_the_delivery_and_what_arrived_stays(world, scripted, clock):
    def step(index, data):
        clock.s += 4
        world.metered = world.metered or index == 10
        return data

    far = scripted(step)
    with pytest.raises(DeliveryPolicyError):
        world.deliver(far, have=())
    assert world.fetcher.arrived_bytes(world.package) >= 10 * BLOCK_BYTES
    world.metered = False
    again = scripted()
    world.deliver(again, have=())
    assert len(again.given) <= 10


def test_what_another_delivery_began_is_left_alone(world, scripted, library, policy):
    other = library.add(5, seed=3)
    world.fetcher.fetch(other, [scripted()], policy)
    with pytest.raises(AssertionError):
        world.deliver(scripted())
    assert world.fetcher.path(other).exists()


def test_without_any_source_it_says_so(world):
    with pytest.raises(NoSourceError):
        world.deliver()
