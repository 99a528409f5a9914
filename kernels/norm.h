// The row of a root mean square normalisation; the formula stands in norm.py.
#ifndef PENSTOCK_NORM_H
#define PENSTOCK_NORM_H

#include "common.h"

enum { STRANDS = 16 };

// The sum of squares keeps 16 strands (element i goes to strand i % 16) and folds them in halves:
// the order is a function of size alone.
INLINE float mean_of_squares(const void *x, int64_t start, int64_t size, const int half) {
    enum { VECTORS = STRANDS / LANES };
    vector sum[VECTORS];
    for (int v = 0; v < VECTORS; v++) sum[v] = splat(0.0f);
    int64_t i = 0;
    for (; i + STRANDS <= size; i += STRANDS)
        for (int v = 0; v < VECTORS; v++) {
            vector value = load_lanes(x, start + i + v * LANES, half);
            sum[v] += value * value;
        }
    float strand[STRANDS];
    memcpy(strand, sum, sizeof strand);
    for (int j = 0; i + j < size; j++) {
        float value = load(x, start + i + j, half);
        strand[j] += value * value;
    }
    for (int width = STRANDS / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) strand[j] += strand[j + width];
    return strand[0] / (float)size;
}

// size elements of x from start on, normalised, to those of out from to on; both may be the same.
INLINE void norm_elements(const void *x, int64_t start, const void *weight, void *out, int64_t to,
                          int64_t size, float epsilon, const int half) {
    float inverse = 1.0f / sqrtf(mean_of_squares(x, start, size, half) + epsilon);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vector value = rounded_lanes(load_lanes(x, start + i, half) * inverse, half);
        store_lanes(out, to + i, load_lanes(weight, i, half) * value, half);
    }
    for (; i < size; i++) {
        float value = rounded(load(x, start + i, half) * inverse, half);
        store(out, to + i, load(weight, i, half) * value, half);
    }
}

#endif
