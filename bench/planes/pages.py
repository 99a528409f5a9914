"""Pages of a benchmark: what they hold, which of them an operation takes, and whether they came."""

import numpy

from ...kvtransfer.host_memory import HostMemory

CHECKED_AT_ONCE = 2 << 20  # bytes of small pages; the check must not need the pool's size again
LARGE_PAGE = 128 << 10  # from here on a page is checked by itself, in parts a cache holds


class WrongBytes(Exception):
    """A page does not hold what the holder's page held."""


def fill(memory: HostMemory) -> None:
    """Every word holds its own place, so that each page differs from each other at each offset."""
    words = numpy.frombuffer(memory.pages, dtype=numpy.uint64)
    step = CHECKED_AT_ONCE // 8
    for start in range(0, len(words), step):
        end = min(start + step, len(words))
        words[start:end] = numpy.arange(start, end, dtype=numpy.uint64)


def touch(memory: HostMemory) -> None:
    """Zeros, so that no page is taken from the system while something is timed."""
    numpy.frombuffer(memory.pages, dtype=numpy.uint64)[:] = 0


def scattered(page_count: int, wanted: int, seed: int) -> list[int]:
    """Pages as a pool that was long in use grants them: any, lowest first."""
    random = numpy.random.default_rng(seed)
    return sorted(random.choice(page_count, wanted, replace=False).tolist())


def chosen(page_count: int, words: dict[str, int]) -> tuple[list[int], list[int]]:
    """Remote and local pages of a read: `count` scattered by `seed`, or in order from `start`."""
    count, start = words["count"], words.get("start", -1)
    if start >= 0:
        pages = list(range(start, min(start + count, page_count)))
        return pages, pages
    seed = words["seed"]
    return scattered(page_count, count, seed), scattered(page_count, count, seed + 1)


def verify(memory: HostMemory, local: list[int], remote: list[int]) -> None:
    """Raises WrongBytes unless the local pages hold what `fill` wrote to the remote ones; clears
    them, so that a later operation cannot be taken for done by what an earlier one left."""
    words = numpy.frombuffer(memory.pages, dtype=numpy.uint64)
    width = memory.memory.page_bytes // 8
    if memory.memory.page_bytes < LARGE_PAGE:
        _verify_small(words.reshape(-1, width), local, remote)
        return
    offsets = numpy.arange(LARGE_PAGE // 8, dtype=numpy.uint64)
    for ours, theirs in zip(local, remote, strict=True):
        for start in range(0, width, len(offsets)):
            count = min(len(offsets), width - start)
            there = words[ours * width + start : ours * width + start + count]
            if not numpy.array_equal(there, offsets[:count] + numpy.uint64(theirs * width + start)):
                raise WrongBytes(f"page {ours} does not hold remote page {theirs}")
            there[:] = 0


def _verify_small(words: numpy.ndarray, local: list[int], remote: list[int]) -> None:
    """Many pages at a time; `words` has one row per page."""
    width = words.shape[1]
    offsets = numpy.arange(width, dtype=numpy.uint64)
    step = CHECKED_AT_ONCE // (8 * width)
    for start in range(0, len(local), step):
        here = numpy.array(local[start : start + step])
        first = numpy.array(remote[start : start + step], dtype=numpy.uint64) * numpy.uint64(width)
        wrong = (words[here] != first[:, None] + offsets).any(axis=1)
        if wrong.any():
            at = start + int(wrong.argmax())
            raise WrongBytes(f"page {local[at]} does not hold remote page {remote[at]}")
        words[here] = 0
