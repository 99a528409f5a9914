"""Where a worker's pages lie, as numbers a transfer plane can register. Knows no tensor."""

from dataclasses import dataclass


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

    @property
    def total_bytes(self) -> int:
        return self.page_bytes * self.page_count
