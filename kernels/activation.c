// SiLU times up; the formula stands in activation.py.
#include "common.h"

// exp(x) = 2^n * 2^f with n = round(x / ln 2); the polynomial is that of elementary.py, fused here.
INLINE float exponential(float x) {
    x = x < -103.0f ? -103.0f : x;
    x = x > 89.5f ? 89.5f : x;  // already infinite there
    float magic = 12582912.0f;
    float n = (x * 1.44269504088896341f + magic) - magic;
    float r = __builtin_fmaf(n, -0.693359375f, x);
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = __builtin_fmaf(p, r, 1.3981999507e-3f);
    p = __builtin_fmaf(p, r, 8.3334519073e-3f);
    p = __builtin_fmaf(p, r, 4.1665795894e-2f);
    p = __builtin_fmaf(p, r, 1.6666665459e-1f);
    p = __builtin_fmaf(p, r, 5.0000001201e-1f);
    p = __builtin_fmaf(p, r * r, r) + 1.0f;
    // Two steps, because 2^n alone may lie below the smallest normal number.
    int32_t half_n = (int32_t)n / 2, rest = (int32_t)n - half_n;
    float low = float_of_bits((uint32_t)(half_n + 127) << 23);
    return p * low * float_of_bits((uint32_t)(rest + 127) << 23);
}

INLINE void silu_row(const void *gate_up, void *out, int64_t row, int64_t size, const int half) {
    int64_t gate = row * 2 * size, up = gate + size;
    for (int64_t i = 0; i < size; i++) {
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
