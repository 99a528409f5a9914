// Root mean square normalisation; the formula stands in norm.py.
#include "common.h"

enum { STRANDS = 16 };

// The sum of squares keeps 16 strands (element i goes to strand i % 16) and folds them in halves:
// the order is a function of size alone.
INLINE float mean_of_squares(const float *row, int64_t size) {
    float strand[STRANDS] = {0};
    int64_t i = 0;
    for (; i + STRANDS <= size; i += STRANDS)
        for (int j = 0; j < STRANDS; j++) strand[j] += row[i + j] * row[i + j];
    for (int j = 0; i + j < size; j++) strand[j] += row[i + j] * row[i + j];
    for (int width = STRANDS / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) strand[j] += strand[j + width];
    return strand[0] / (float)size;
}

INLINE void norm_row(const void *x, void *residual, const void *weight, void *out, int64_t row,
                     int64_t size, float epsilon, float *scratch, const int half) {
    int64_t start = row * size;
    for (int64_t i = 0; i < size; i++) scratch[i] = load(x, start + i, half);
    if (residual)
        for (int64_t i = 0; i < size; i++) {
            scratch[i] = rounded(scratch[i] + load(residual, start + i, half), half);
            store(residual, start + i, scratch[i], half);
        }
    float inverse = 1.0f / sqrtf(mean_of_squares(scratch, size) + epsilon);
    for (int64_t i = 0; i < size; i++)
        store(out, start + i, load(weight, i, half) * rounded(scratch[i] * inverse, half), half);
}

// residual may be null: then x alone is normalised.
int64_t penstock_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows,
                      int64_t size, float epsilon, int64_t half, int64_t threads) {
    int64_t status = 0;
    if (rows * size < 32768) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = malloc(size * sizeof(float));
        if (!scratch) {
#pragma omp atomic write
            status = REFUSED_MEMORY;
        }
#pragma omp barrier
        if (!status) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) {
                if (half)
                    norm_row(x, residual, weight, out, row, size, epsilon, scratch, 1);
                else
                    norm_row(x, residual, weight, out, row, size, epsilon, scratch, 0);
            }
        }
        free(scratch);
    }
    return status;
}
