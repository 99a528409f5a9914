"""Where a worker's pages lie, as numbers a transfer plane can register. Knows no tensor."""

import fcntl
import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PageMemory:
    """One contiguous run of pages, and one unsigned 64-bit generation per page in host memory.

    `file` is the descriptor of the memory file behind both on CPU (generations first, then pages
    at `pages_offset`), or -1 where the pages are device memory.
    """

    device: str  # "cpu" or "cuda:0"
    pages_address: int
    page_bytes: int
    page_count: int
    generations_address: int
    file: int = -1
    pages_offset: int = 0  # bytes into the file
    # What the addresses point into: not unmapped as long as somebody, a plane say, holds this.
    owner: object = field(default=None, repr=False, compare=False)

    @property
    def total_bytes(self) -> int:
        return self.page_bytes * self.page_count


def sealed_file(name: str, size: int) -> int:
    """An anonymous memory file whose size nobody can change any more, neither we nor a peer.

    A peer that has mapped it would be killed by the first look beyond a new end (SIGBUS).
    """
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file
