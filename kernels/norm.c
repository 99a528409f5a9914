// Root mean square normalisation; the formula stands in norm.py.
#include "norm.h"

INLINE void norm_row(const void *x, void *residual, const void *weight, void *out, int64_t row,
                     int64_t size, float epsilon, const int half) {
    int64_t start = row * size;
    if (residual) {
        int64_t i = start;
        for (; i + LANES <= start + size; i += LANES) {
            vector sum = load_lanes(x, i, half) + load_lanes(residual, i, half);
            store_lanes(residual, i, sum, half);
        }
        for (; i < start + size; i++)
            store(residual, i, load(x, i, half) + load(residual, i, half), half);
        x = residual;
    }
    norm_elements(x, start, weight, out, start, size, epsilon, half);
}

// residual may be null: then x alone is normalised.
int64_t penstock_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows,
                      int64_t size, float epsilon, int64_t half, int64_t threads) {
    if (rows * size < 32768) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        if (half)
            norm_row(x, residual, weight, out, row, size, epsilon, 1);
        else
            norm_row(x, residual, weight, out, row, size, epsilon, 0);
    }
    return 0;
}
