"""Pages and generations of one process in a memory file, without torch: for probes and tests."""

import ctypes
import mmap
import os
import secrets

from ..protocol.memory import PageMemory, sealed_file
from .targets import generations_view, page_bytes_view


class HostMemory:
    """Owns the file and its mapping. `pages` and `generations` are views to write through."""

    def __init__(self, page_bytes: int, page_count: int) -> None:
        offset = -(-page_count * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        size = offset + page_bytes * page_count
        self._file = sealed_file(f"penstock-{secrets.token_hex(4)}", size)
        self._map = mmap.mmap(self._file, 0)
        base = _address(self._map)
        self.memory = PageMemory(
            device="cpu",
            pages_address=base + offset,
            page_bytes=page_bytes,
            page_count=page_count,
            generations_address=base,
            file=self._file,
            pages_offset=offset,
        )
        self.pages = page_bytes_view(self.memory)
        self.generations = generations_view(self.memory)

    def page(self, number: int) -> memoryview:
        size = self.memory.page_bytes
        return self.pages[number * size : (number + 1) * size]

    def close(self) -> None:
        """Only after every plane over it is closed: a late write would hit unmapped memory."""
        self.pages.release()
        self.generations.release()
        self._map.close()
        os.close(self._file)


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
