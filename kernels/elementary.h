// exp for the C files that work element by element, and the same for vectors of elements;
// attention.c has one of its own, for negative numbers.
#ifndef PENSTOCK_ELEMENTARY_H
#define PENSTOCK_ELEMENTARY_H

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

INLINE vector limited(vector x, float low, float high) {
    vector_int below = x < low, above = x > high;
    vector_int kept = ~(below | above) & (vector_int)x;
    return (vector)(kept | (below & (vector_int)splat(low)) | (above & (vector_int)splat(high)));
}

// As exponential(), operation for operation, so that an element's bits do not depend on its place.
INLINE vector exponential_lanes(vector x) {
    x = limited(x, -103.0f, 89.5f);
    vector magic = splat(12582912.0f);
    vector n = (x * 1.44269504088896341f + magic) - magic;
    vector r = fused(n, splat(-0.693359375f), x);
    r = fused(n, splat(2.12194440e-4f), r);
    vector p = splat(1.9875691500e-4f);
    p = fused(p, r, splat(1.3981999507e-3f));
    p = fused(p, r, splat(8.3334519073e-3f));
    p = fused(p, r, splat(4.1665795894e-2f));
    p = fused(p, r, splat(1.6666665459e-1f));
    p = fused(p, r, splat(5.0000001201e-1f));
    p = fused(p, r * r, r) + 1.0f;
    vector_int whole = __builtin_convertvector(n, vector_int), half_n = whole / 2;
    vector low = (vector)((half_n + 127) << 23);
    return p * low * (vector)((whole - half_n + 127) << 23);
}

#endif
