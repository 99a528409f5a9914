"""Time the tensor operations: attention by context and batch, linear layers packed and not.

    main(["--threads", "1", "--dtype", "bf16", "--head", "128", "--groups", "2", "--ratio", "4"])

Medians of repeats; wall and CPU time stand side by side, so that a busy machine shows. Prefill is
given as a fraction of the peak of fp32 fused multiply-add measured in the same run, by a C loop of
register operations; both per second of CPU time. bf16 has instructions of twice that rate, so it
can pass 100 %.
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..kernels.choice import Kernels, choose
from ..kernels.linear import pack_linear

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SLOTS = 16
LINEARS = ((1536, 576), (6144, 1024), (3072, 1024), (1024, 3072), (14336, 4096))
WEIGHTS_TOUCHED = 64 << 20  # bytes: enough copies of a layer that its weights come from memory

# Sums have names of their own: gcc keeps an array of them in memory.
SUMS = [f"s{i}" for i in range(12)]
PEAK = f"""
#include <time.h>
typedef float vector __attribute__((vector_size(4 * LANES)));
double peak(long turns, float start) {{
    struct timespec a, b;
    vector zero = {{0}}, x = zero + start, {", ".join(f"{s} = zero" for s in SUMS)};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    for (long n = 0; n < turns; n++) {{
        {" ".join(f"{s} = {s} * x + x;" for s in SUMS)}
        __asm__ volatile("" : {", ".join(f'"+KIND"({s})' for s in SUMS)});
    }}
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    return turns * 24.0 * LANES / (b.tv_sec - a.tv_sec + 1e-9 * (b.tv_nsec - a.tv_nsec));
}}
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench kernels", description="time the tensor operations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--kernels", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--head", type=int, default=128)
    parser.add_argument("--groups", type=int, default=2, help="key heads")
    parser.add_argument("--ratio", type=int, default=4, help="query heads per key head")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kernels = choose("cpu", options.kernels)
    peak = measured_peak()
    print(f"kernels {kernels.name} ({kernels.why}), torch {torch.__version__}")
    print(f"{options.dtype}, {options.threads} threads, fp32 FMA peak of one {gigas(peak)} GFLOP/s")
    decode(kernels, options)
    prefill(kernels, options, peak)
    linears(options)
    return 0


def decode(kernels: Kernels, options: argparse.Namespace) -> None:
    print(f"\n{'decode':>10} {'context':>8} {'wall us':>9} {'cpu us':>9} {'KV GB/s':>8}")
    for sequences in (1, 8, 32):
        for context in (128, 2048, 16384):
            run, kv_bytes = attention(kernels, options, sequences, 1, context)
            wall, cpu = median(run, options.repeats)
            rate = f"{kv_bytes / wall / 1e9:8.1f}"
            print(f"{f'B={sequences}':>10} {context:8} {wall * 1e6:9.0f} {cpu * 1e6:9.0f} {rate}")


def prefill(kernels: Kernels, options: argparse.Namespace, peak: float | None) -> None:
    print(f"\n{'prefill':>10} {'context':>8} {'wall ms':>9} {'cpu ms':>9} {'GFLOP/s':>8} of peak")
    rows = 512
    for context in (512, 2048, 16384):
        run, _ = attention(kernels, options, 1, rows, context)
        wall, cpu = median(run, options.repeats)
        seen = sum(range(context - rows + 1, context + 1))  # keys, over all rows
        rate = 4 * options.head * options.groups * options.ratio * seen / wall
        share = f"{rate * wall / cpu / peak:6.0%}" if peak else "   ?"
        print(f"{rows:10} {context:8} {wall * 1e3:9.2f} {cpu * 1e3:9.2f} {gigas(rate):>8} {share}")


def attention(
    kernels: Kernels, options: argparse.Namespace, sequences: int, rows: int, context: int
) -> tuple[Callable[[], object], int]:
    dtype = DTYPES[options.dtype]
    pages_each = -(-context // SLOTS)
    count = sequences * pages_each
    pages = torch.randn(count, 1, 2, options.groups, SLOTS, options.head).to(dtype)
    table = torch.randperm(count, dtype=torch.int32).view(sequences, pages_each)
    starts = torch.arange(sequences + 1, dtype=torch.int32) * rows
    contexts = torch.full((sequences,), context, dtype=torch.int32)
    q = torch.randn(sequences * rows, options.groups * options.ratio, options.head).to(dtype)
    scale = options.head**-0.5
    kv_bytes = pages.numel() * pages.element_size()
    return lambda: kernels.paged_attention(q, pages, 0, table, starts, contexts, scale), kv_bytes


def linears(options: argparse.Namespace) -> None:
    dtype = DTYPES[options.dtype]
    print(f"\n{'linear':>12} {'rows':>5} {'packed us':>10} {'cpu':>8} {'plain us':>9} {'cpu':>8}")
    for outputs, inputs in LINEARS:
        weight = torch.randn(outputs, inputs).to(dtype)
        copies = max(1, WEIGHTS_TOUCHED // (weight.numel() * weight.element_size()))
        plain = [weight.clone() for _ in range(copies)]
        packed = [pack_linear(one) for one in plain]
        for rows in (1, 2, 8, 32, 512):
            x = torch.randn(rows, inputs).to(dtype)
            repeats = max(1, options.repeats // 2)
            ours = median(lambda x=x, packed=packed: [layer(x) for layer in packed], repeats)
            rival = median(
                lambda x=x, plain=plain: [torch.nn.functional.linear(x, w) for w in plain], repeats
            )
            times = [t / copies * 1e6 for t in (*ours, *rival)]
            print(
                f"{f'{outputs}x{inputs}':>12} {rows:5} {times[0]:10.0f} {times[1]:8.0f} "
                f"{times[2]:9.0f} {times[3]:8.0f}"
            )


def median(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of wall and of CPU time."""
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def measured_peak() -> float | None:
    """FLOP/s of fused multiply-add on one thread, best of three; None without a compiler."""
    capability = torch.backends.cpu.get_cpu_capability()
    lanes, kind = (16, "v") if capability == "AVX512" else (8, "x")
    source = PEAK.replace("LANES", str(lanes)).replace("KIND", kind)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peak.so"
        command = [
            "cc",
            "-O3",
            "-march=native",
            "-shared",
            "-fPIC",
            "-x",
            "c",
            "-",
            "-o",
            str(file),
        ]
        try:
            subprocess.run(command, input=source.encode(), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        function = ctypes.CDLL(str(file)).peak
    function.argtypes, function.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_double
    return max(function(10_000_000, 0.5) for _ in range(3))


def gigas(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate / 1e9:.0f}"
