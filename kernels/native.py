"""The C files of this folder: compiled once, kept in the user's cache, called through ctypes.

The shared object is named by a digest of the sources, the flags and the compiler's predefined
macros (they state its version and, under -march=native, every feature of the processor), so a
cache folder that several machines share never serves the wrong one. A build goes to a name of its
own and is renamed into place: several processes may build at once, and none sees half a file.

ctypes releases the interpreter lock during a call. The object asks for libgomp.so.1 by that name,
which torch has loaded under the same name: one pool of threads serves both.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

FOLDER = Path(__file__).resolve().parent
FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=gnu11",
)
TARGETS = ("-march=native", "-mcpu=native")

# p: address, i: 64-bit integer, f: fp32. Every function returns 0 or a key of REFUSALS.
SIGNATURES = {
    "penstock_norm": "ppppiifii",
    "penstock_rotate_and_store": "pppppppppppi",
    "penstock_rotate": "ppppppi",
    "penstock_store_latent": "pppppppppi",
    "penstock_attention": "ppppppppii",
    "penstock_silu_mul": "ppiiii",
    "penstock_linear": "ppppppi",
    "penstock_gumbel": "pppiiipi",
    "penstock_gumbel_at": "ppppiip",
    "penstock_route": "pppppi",
    "penstock_experts": "ppppppppppi",
    "penstock_heads": "ppppi",
}
REFUSALS = {
    1: "a page id lies outside the pool",
    2: "a slot lies outside its page",
    3: "a position lies outside its table",
    4: "query rows do not fit the batch: starts must rise from 0 to T, and no sequence may have "
    "more query rows than context",
    5: "no memory for the scratch of one thread",
    6: "an expert's id lies outside the layer",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class NativeUnavailable(RuntimeError):
    """The C kernels cannot be built or loaded here; the message says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Library:
    functions: dict[str, Callable[..., int]]
    digest: str

    def call(self, name: str, *arguments) -> None:
        """Run one function; what it refuses is raised before it has touched any memory."""
        code = self.functions[name](*arguments)
        if code:
            raise ValueError(f"{name.removeprefix('penstock_')}: {REFUSALS[code]}")


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def refuse(sentence: str) -> NoReturn:
    """For calls of every step: `require` would have its sentence composed each time."""
    raise ValueError(sentence)


def held_groups(pages: torch.Tensor) -> int:
    """Key heads that the memory of pages holds, of which these [P, L, C, G, S, H] may be some."""
    if pages.is_contiguous():
        return pages.shape[3]
    _, layers, sides, _, slots, head = pages.shape
    side = pages.stride(2)
    if pages.stride() != (layers * sides * side, sides * side, side, slots * head, head, 1):
        refuse("pages must be contiguous, or some key heads of contiguous ones, side by side")
    return side // (slots * head)


def half(tensor: torch.Tensor) -> int:
    """1 for bf16, 0 for fp32, the two dtypes the C files know, and only in the CPU's memory."""
    if not tensor.is_cpu:
        refuse(f"native kernels take CPU tensors, not {tensor.device}")
    if tensor.dtype == torch.bfloat16:
        return 1
    if tensor.dtype != torch.float32:
        refuse(f"native kernels take bf16 or fp32, not {tensor.dtype}")
    return 0


@functools.cache
def load(target: str | None = None) -> Library:
    """Build if the cache lacks it, then load. target overrides -march=native (tests use it)."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NativeUnavailable("no C compiler: neither $CC nor cc is on the path")
    flags, macros = _flags(compiler, target)
    digest = _digest(flags, macros)
    folder = cache_folder()
    file = folder / f"kernels-{digest[:24]}.so"
    if not file.exists():
        _build(compiler, flags, file)
    try:
        handle = ctypes.CDLL(str(file))
    except OSError as error:
        raise NativeUnavailable(f"the compiled kernels do not load: {error}") from error
    return Library(_declare(handle), digest)


def cache_folder() -> Path:
    """$PENSTOCK_CACHE, else the user's cache folder; private, since code is loaded from it."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("PENSTOCK_CACHE") or Path(base) / "penstock")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NativeUnavailable(f"no cache folder for compiled kernels: {error}") from error
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise NativeUnavailable(f"the cache folder {folder} belongs to another user")
    return folder


def _sources() -> list[Path]:
    return sorted(FOLDER.glob("*.c"))


def _flags(compiler: str, target: str | None) -> tuple[tuple[str, ...], bytes]:
    """The full flags, and the macros the compiler defines under them."""
    complaint = ""
    for candidate in (target,) if target else TARGETS:
        command = [compiler, *FLAGS, candidate, "-dM", "-E", "-x", "c", os.devnull]
        result = subprocess.run(command, capture_output=True)
        if result.returncode == 0:
            return (*FLAGS, candidate), result.stdout
        complaint = complaint or result.stderr.decode(errors="replace")
    raise NativeUnavailable(f"the C compiler refuses our flags: {_first_error(complaint)}")


def _digest(flags: tuple[str, ...], macros: bytes) -> str:
    parts = [file.read_bytes() for file in (*_sources(), *sorted(FOLDER.glob("*.h")))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(flags).encode(), macros])).hexdigest()


def _build(compiler: str, flags: tuple[str, ...], file: Path) -> None:
    """Compile beside the final name, then rename: atomic, whoever else does the same."""
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".building")
    except OSError as error:
        raise NativeUnavailable(f"the cache folder cannot be written: {error}") from error
    os.close(handle)
    try:
        command = [compiler, *flags, *map(str, _sources()), "-o", name, "-lm"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise NativeUnavailable(f"the C kernels do not compile: {_first_error(result.stderr)}")
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line] or output.splitlines()
    return lines[0].strip() if lines else "it says nothing"


def _declare(handle: ctypes.CDLL) -> dict[str, Callable[..., int]]:
    functions = {}
    for name, letters in SIGNATURES.items():
        function = getattr(handle, name)
        function.argtypes = [TYPES[letter] for letter in letters]
        function.restype = ctypes.c_int64
        functions[name] = function
    return functions
