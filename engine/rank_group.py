"""The ranks of one worker as a group of torch.distributed: partial sums of all, in their order.

All-gather and not all-reduce: the order in which partial sums are added is ours (models/shards.py).
"""

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor


class RankGroup:
    """This process's place in it. `gather` may be given away before `join`, not called."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks
        self._joined = False

    def join(self, meeting: Path, seconds: float) -> None:
        """Blocks until all are there; `meeting` is a file that only they can reach.

        An exchange that takes longer than `seconds` fails, as does the meeting itself.
        """
        # Ranks are on one host: gloo listens without a key, so not beyond it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=self.rank,
            world_size=self.ranks,
            timeout=timedelta(seconds=seconds),
            group_name="penstock-ranks",
        )
        self._joined = True

    def gather(self, partials_XTD: Tensor) -> Tensor:
        """[S, T, D]: what all ranks gave, in order. Raises RuntimeError where one is gone."""
        every_RXTD = partials_XTD.new_empty(self.ranks, *partials_XTD.shape)
        # As bytes: a sum's dtype is nothing to the transport.
        places = list(every_RXTD.view(torch.uint8).unbind(0))
        torch.distributed.all_gather(places, partials_XTD.view(torch.uint8))
        return every_RXTD.flatten(0, 1)

    def leave(self) -> None:
        if self._joined:
            self._joined = False
            torch.distributed.destroy_process_group()
