"""Work that reads and computes, a few pieces at once, its results in order."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Built = TypeVar("Built")

# Some read while others pack; each holds a layer's largest tensor before and after it is packed.
MOST_AT_ONCE = 4


def overlapped(build: Callable[[int], Built], count: int) -> list[Built]:
    """[build(0), .., build(count - 1)] on threads of their own, which share torch's threads.

    The first error ends it; what had not begun is not built.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    workers = max(2, min(MOST_AT_ONCE, threads))

    def begin() -> None:
        torch.set_num_threads(max(1, threads // workers))  # this thread's own, and the default

    def built(at: int) -> Built:
        with torch.inference_mode(inference):  # a thread's own, too
            return build(at)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="load", initializer=begin)
    try:
        futures = [pool.submit(built, at) for at in range(count)]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
