// SiLU times up; the formula stands in activation.py.
#include "elementary.h"

INLINE void silu_row(const void *gate_up, void *out, int64_t row, int64_t size, const int half) {
    int64_t gate = row * 2 * size, up = gate + size, i = 0;
    for (; i + LANES <= size; i += LANES) {
        vector g = load_lanes(gate_up, gate + i, half);
        vector activated = rounded_lanes(g / (1.0f + exponential_lanes(-g)), half);
        vector answer = activated * load_lanes(gate_up, up + i, half);
        store_lanes(out, row * size + i, answer, half);
    }
    for (; i < size; i++) {
        float g = load(gate_up, gate + i, half);
        float activated = rounded(g / (1.0f + exponential(-g)), half);
        store(out, row * size + i, activated * load(gate_up, up + i, half), half);
    }
}

int64_t penstock_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t size, int64_t half,
                          int64_t threads) {
    if (rows * size < 16384) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        if (half)
            silu_row(gate_up, out, row, size, 1);
        else
            silu_row(gate_up, out, row, size, 0);
    }
    return 0;
}
