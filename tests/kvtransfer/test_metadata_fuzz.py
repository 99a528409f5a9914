"""What a peer says of its pages, damaged at random: taken or a PlaneError, and nothing else."""

import os
import random
import secrets

import msgspec
import pytest

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import CHOICES, open_plane
from penstock.kvtransfer.plane import Plane, PlaneError, PlaneSettings

ROUNDS = 300
EDGES = (0, -1, 3, 1 << 31, 1 << 62, (1 << 64) - 1, "", "\0", "a" * 300, "tcp://", "::1", b"", b"x")
PLANES = [choice for choice in CHOICES if choice != "auto"]


def damaged(chance: random.Random, metadata: bytes) -> bytes:
    told = bytearray(metadata)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(told) + 1)
        match chance.randrange(4):
            case 0 if at < len(told):
                told[at] ^= 1 << chance.randrange(8)
            case 1:
                del told[at:]
            case 2:
                told[at:at] = chance.randbytes(5)
            case _:
                told[at : at + 4] = b"\xff" * 4
    return bytes(told)


def use(plane: Plane, other: Plane) -> None:
    """What was taken is read from, and forgotten."""
    try:
        plane.read("peer", [1], [2], [1])
    except PlaneError as error:
        assert str(error)
    for _ in range(3):
        plane.progress()
        other.progress()
    plane.remove_peer("peer")
    plane.progress()


@pytest.mark.parametrize("choice", PLANES)
def test_damaged_metadata_is_refused_or_harmless(choice: str) -> None:
    chance = random.Random(3)
    memories = HostMemory(4096, 8), HostMemory(4096, 8)
    holder, reader = (
        open_plane(choice, PlaneSettings(one.memory, f"{os.getpid()}-{secrets.token_hex(4)}"))
        for one in memories
    )
    refused = 0
    for incarnation in range(1, ROUNDS):
        try:
            reader.add_peer("peer", incarnation, damaged(chance, holder.metadata()))
        except PlaneError as error:
            assert "peer" in str(error)
            refused += 1
        else:
            use(reader, holder)
    assert refused > ROUNDS // 2
    reader.close()
    holder.close()
    for memory in memories:
        memory.close()


@pytest.mark.parametrize("choice", ["shm", "tcp", "zmq"])
def test_each_field_at_its_edges_is_refused_or_harmless(choice: str) -> None:
    """Metadata of the right shape, with one value that cannot be."""
    memories = HostMemory(4096, 8), HostMemory(4096, 8)
    holder, reader = (
        open_plane(choice, PlaneSettings(one.memory, f"{os.getpid()}-{secrets.token_hex(4)}"))
        for one in memories
    )
    told = msgspec.msgpack.decode(holder.metadata())
    edges = [(at, value) for at in range(1, len(told)) for value in EDGES]
    for incarnation, (at, value) in enumerate(edges, 1):
        if type(value) is type(told[at]):
            metadata = msgspec.msgpack.encode([*told[:at], value, *told[at + 1 :]])
            try:
                reader.add_peer("peer", incarnation, metadata)
            except PlaneError as error:
                assert "peer" in str(error)
            else:
                use(reader, holder)
    reader.add_peer("peer", len(edges) + 1, holder.metadata())
    use(reader, holder)
    reader.close()
    holder.close()
    for memory in memories:
        memory.close()
