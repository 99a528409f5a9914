"""F1 and F5: a holder that dies, and one that comes again at the same place, on every plane."""

import msgspec
import pytest

from penstock.bench.breaking.reader import COMPLETE
from penstock.bench.breaking.rounds import WHEN, death, descriptors, resident_bytes, respawn
from penstock.kvtransfer.columns import pack
from penstock.kvtransfer.plane import PlaneError
from penstock.protocol.messages import Agent, Handoff, LeaseEnded, Peer, Published, Refused

BLOCKS = 1000  # 20 MB: not read at once
PIECE_BYTES = 32 << 10  # so that a read takes many turns
LOST = ("PEER_LOST", "READ_FAILED")


def test_f1_a_dead_holder_ends_its_handovers_with_a_reason(scene_of, way):
    scene = scene_of(way, bytes_per_post=PIECE_BYTES)
    words = []
    for when in WHEN:
        if when != "unmet":
            scene.introduce()
        seen = death(scene, when, BLOCKS)
        words.append(seen.outcome.word)
        if when.endswith("ms") and seen.outcome.word == COMPLETE:
            assert seen.outcome.wrong == 0  # the kernel took its time to end the process
        else:
            assert seen.outcome.word in LOST, (when, seen)
            assert scene.holder.endpoint in seen.outcome.reason
        scene.respawn()
    assert set(words[2:]) & set(LOST), "no read was under way when its holder died"
    scene.introduce()


def test_f1_what_was_computed_by_a_dead_holder_is_handed_over_by_another(scene_of, plane):
    scene = scene_of(plane, bytes_per_post=PIECE_BYTES)
    other = scene.add_holder()
    for number in range(2):
        scene.introduce()
        request = scene.offer(BLOCKS)
        scene.reader.pump()
        scene.holder.strike()
        assert scene.reader.settle(request).word in LOST
        other.hand(request, BLOCKS, scene.reader.endpoint, attempt=2)
        outcome = scene.reader.settle(request, attempt=2)
        assert (outcome.word, outcome.wrong) == (COMPLETE, 0), number
        scene.quiet_down()
        scene.respawn()


def test_f5_a_new_incarnation_at_the_same_place_serves_and_leaves_nothing(scene_of, plane):
    scene = scene_of(plane)
    for _ in range(2):  # what is kept once, for ever
        respawn(scene)
    files, memory = descriptors(), resident_bytes()
    endpoint, incarnations = scene.holder.endpoint, {scene.holder.peer.incarnation}
    for _ in range(5):
        seen = respawn(scene)
        assert (seen.outcome.word, seen.outcome.wrong) == (COMPLETE, 0)
        assert scene.holder.endpoint == endpoint
        incarnations.add(scene.holder.peer.incarnation)
    assert len(incarnations) == 6
    scene.quiet_down()
    scene.reader.until(lambda: descriptors() <= files + 2, "the closing of descriptors")
    assert resident_bytes() < memory + (8 << 20)


def test_f5_words_of_the_old_incarnation_change_nothing(scene_of, plane):
    scene = scene_of(plane)
    reader = scene.reader
    scene.introduce()
    old, metadata = scene.holder.peer, bytes.fromhex(scene.holder.facts["metadata"])
    scene.respawn()
    scene.introduce()
    request = scene.announce(40)
    incoming = reader.incoming(request)
    assert incoming is not None
    lease = incoming.handoff.lease
    prefill = incoming.handoff.prefill
    compatibility = reader.parts.compatibility
    late = [
        Agent(compatibility, metadata),
        Refused("we do not fit"),
        LeaseEnded(lease - 1000, "expired"),
        Published(lease - 1000, 0, *pack([1], [1], [b""])),
        Handoff(msgspec.structs.replace(prefill, request=999), lease - 1000, 10.0, 0),
    ]
    for message in late:
        reader.reader.take(old, message, incoming.arrived)
        assert reader.incoming(request) is incoming, message
    assert len(reader.reader.incoming) == 1, "a hand-over of a dead process was begun"
    reader.pump()
    assert reader.outcome(999).word == "REFUSED"  # the router hears of it
    with pytest.raises(PlaneError, match="newer"):
        reader.parts.plane.add_peer(old.endpoint, old.incarnation, metadata)
    scene.holder.publish(request)
    outcome = reader.settle(request)
    assert (outcome.word, outcome.wrong) == (COMPLETE, 0)
    assert isinstance(old, Peer) and old.incarnation < scene.holder.peer.incarnation
