"""The chained hash of blocks: one definition for router, prefill and decode. Pure.

h(i) = blake2b-128(h(i-1) | tokens of block i as little-endian int32), h(-1) = the root of
(model digest, numeric class, cache salt). A cryptographic hash, because a collision would show one
tenant another's answer; the salt in the root keeps tenants apart (no prefix-timing channel).
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16
TOKEN_BYTES = 4


def root(model: str, numeric_class: str, cache_salt: str) -> bytes:
    """The parent of a prompt's first block."""
    text = "\0".join((model, numeric_class, cache_salt))
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def extend(parent: bytes, token_ids: Sequence[int], page_slots: int, known: int = 0) -> list[bytes]:
    """Hashes of the full blocks known, known+1, ... of `token_ids`; `parent` is that of `known`."""
    content = _content(token_ids[known * page_slots :])
    step = page_slots * TOKEN_BYTES
    hashes = []
    for start in range(0, len(content) - step + 1, step):
        parent = blake2b(parent + content[start : start + step], digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes


def tail(root: bytes, hashes: Sequence[bytes], token_ids: Sequence[int], page_slots: int) -> bytes:
    """What the partial block behind the full ones holds; b"" where there is none.

    It is hashed apart from full blocks: no cache finds a tail, only hand-overs name it.
    """
    rest = token_ids[len(hashes) * page_slots :]
    if not rest:
        return b""
    parent = hashes[-1] if hashes else root
    return blake2b(parent + _content(rest), digest_size=DIGEST_BYTES, person=b"tail").digest()


def _content(token_ids: Sequence[int]) -> bytes:
    tokens = array("i", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()
