"""A worker's KV pages: one tensor, one generation counter per page, and where they lie.

    CPU    one anonymous memory file, mapped shared:  [ generations u64[P] | pad | pages ]
           another process maps it by its descriptor; nothing outlives the last process that does
    CUDA   the pages on the device, the generations in host memory

Nothing here unmaps by hand: the mapping goes when the last tensor, view or description of it goes,
so that neither `close` nor the interpreter's end can pull it from under a reader or a plane. The
file is sealed: nobody can change its size, so no peer's mapping ever points behind its end.

P pages, L layers, C sides (2: keys and values; 1: values are part of the keys), G kv heads, S slots
per page, H head size.
"""

import mmap
import os
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..models.blueprint import Blueprint
from ..protocol.memory import PageMemory, sealed_file

Shape = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape of one page; contiguous over all layers, so that a page is one transfer."""

    layers: int
    sides: int
    groups: int
    slots: int
    head: int
    dtype: torch.dtype

    @classmethod
    def of(cls, blueprint: Blueprint, slots: int, dtype: torch.dtype) -> "PageLayout":
        page = blueprint.page
        return cls(len(blueprint.layers), page.sides, page.groups, slots, page.head, dtype)

    @property
    def page_bytes(self) -> int:
        return prod(self.shape(1)) * self.dtype.itemsize

    def shape(self, pages: int) -> Shape:
        return (pages, self.layers, self.sides, self.groups, self.slots, self.head)

    def __str__(self) -> str:
        """What `Compatibility.layout` says."""
        return "PLCGSH " + "x".join(map(str, self.shape(0)[1:]))


class PagedMemory:
    """Owns the pages tensor `pages_PLCGSH`, the `generations` (a view of u64) and the file."""

    def __init__(self, layout: PageLayout, pages: int, device: torch.device | str = "cpu") -> None:
        if pages < 1:
            raise ValueError(f"the memory budget holds no page of {layout.page_bytes} bytes")
        self.layout = layout
        self.device = torch.device(device)
        self.file = -1
        self._closed = False
        if self.device.type == "cpu":
            self._map_file(pages)
        else:
            self._allocate(pages)

    def _map_file(self, pages: int) -> None:
        offset = _offset(pages)
        size = offset + pages * self.layout.page_bytes
        self.file = sealed_file("penstock-pages", size)
        mapping = mmap.mmap(self.file, size)
        # Each frombuffer tensor keeps the mapping alive by itself.
        numbers = torch.frombuffer(mapping, dtype=torch.int64, count=pages)
        self._expose(numbers, _pages_in(mapping, self.layout, pages), offset, mapping)

    def _allocate(self, pages: int) -> None:
        numbers = torch.zeros(pages, dtype=torch.int64)
        tensor = torch.zeros(self.layout.shape(pages), dtype=self.layout.dtype, device=self.device)
        self._expose(numbers, tensor, 0, (numbers, tensor))

    def _expose(self, numbers: Tensor, pages_PLCGSH: Tensor, offset: int, owner: object) -> None:
        self.pages_PLCGSH = pages_PLCGSH
        # numpy's array keeps the tensor's memory alive, and the memoryview the array.
        self.generations = numbers.numpy().data.cast("B").cast("Q")
        self.description = PageMemory(
            device=str(self.device),
            pages_address=pages_PLCGSH.data_ptr(),
            page_bytes=self.layout.page_bytes,
            page_count=pages_PLCGSH.shape[0],
            generations_address=numbers.data_ptr(),
            file=self.file,
            pages_offset=offset,
            owner=owner,
        )

    def close(self) -> None:
        """Let go, for good. Memory that somebody still looks at stays until they let go too."""
        if self._closed:
            return
        self._closed = True
        del self.pages_PLCGSH, self.generations
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def mapped_pages(file: int, layout: PageLayout, pages: int) -> Tensor:
    """The pages_PLCGSH of another process of this worker, by its memory file; closes the file."""
    mapping = mmap.mmap(file, _offset(pages) + pages * layout.page_bytes)
    os.close(file)
    return _pages_in(mapping, layout, pages)


def _offset(pages: int) -> int:
    """Where the pages begin in the file, behind their generations."""
    return -(-8 * pages // mmap.PAGESIZE) * mmap.PAGESIZE


def _pages_in(mapping: mmap.mmap, layout: PageLayout, pages: int) -> Tensor:
    shape = layout.shape(pages)
    flat = torch.frombuffer(mapping, dtype=layout.dtype, count=prod(shape), offset=_offset(pages))
    return flat.view(shape)


def pages_within(budget: int, layout: PageLayout) -> int:
    """How many pages (and their generations) a budget in bytes holds."""
    return (budget - mmap.PAGESIZE) // (layout.page_bytes + 8)
