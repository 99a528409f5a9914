"""The chained block hash."""

from hashlib import blake2b

from penstock.protocol.blockhash import extend, root, tail


def test_it_is_the_stated_chain():
    start = root("model", "class", "salt")
    assert start == blake2b(b"model\0class\0salt", digest_size=16).digest()
    content = b"".join(token.to_bytes(4, "little") for token in (1, 2, 3, 4))
    first = blake2b(start + content, digest_size=16).digest()
    assert extend(start, [1, 2, 3, 4, 5], 4) == [first]


def test_extending_equals_hashing_at_once():
    start = root("model", "class", "")
    tokens = list(range(100))
    whole = extend(start, tokens, 8)
    assert len(whole) == 12
    assert whole[:5] + extend(whole[4], tokens, 8, known=5) == whole


def test_salt_class_and_prefix_all_count():
    tokens = list(range(16))
    hashes = {
        tuple(extend(root(*parts), tokens, 8))
        for parts in [("m", "c", ""), ("m", "c", "x"), ("m", "d", ""), ("n", "c", "")]
    }
    assert len(hashes) == 4
    one, other = (
        extend(root("m", "c", ""), tokens, 8),
        extend(root("m", "c", ""), [9] * 8 + tokens[8:], 8),
    )
    assert one[1] != other[1], "a block's hash covers everything before it"


def test_a_tail_says_what_it_holds_and_is_no_full_block():
    start, tokens = root("m", "c", "x"), list(range(13))
    hashes = extend(start, tokens, 8)
    one = tail(start, hashes, tokens, 8)
    assert (
        one
        == blake2b(
            hashes[0] + b"".join(token.to_bytes(4, "little") for token in tokens[8:]),
            digest_size=16,
            person=b"tail",
        ).digest()
    )
    assert one != extend(hashes[0], tokens[8:], 5)[0], "nor can it be taken for a block of 5"
    short = tail(start, [], tokens[:3], 8)
    assert short != tail(root("m", "c", "y"), [], tokens[:3], 8), "a short prompt has a tenant too"
    assert tail(start, hashes, tokens[:8], 8) == b""
