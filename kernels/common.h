// What the C files of this folder share: bf16 conversion, vectors of the machine's width, and fused
// multiply-add. Everything is compiled with -ffp-contract=off: a multiply and an add fuse only
// where fused() is written, so the order and the rounding of every sum are those of the source.
#ifndef PENSTOCK_COMMON_H
#define PENSTOCK_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if !defined(__FMA__) && !defined(__ARM_FEATURE_FMA)
#error "this processor has no fused multiply-add"
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    REFUSED_PAGE = 1,
    REFUSED_SLOT,
    REFUSED_POSITION,
    REFUSED_ROWS,
    REFUSED_MEMORY,
    REFUSED_EXPERT,
};

typedef uint16_t bf16;

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_bf16(bf16 value) { return float_of_bits((uint32_t)value << 16); }

// Round to nearest even; every NaN becomes 0x7fc0, as torch does it.
INLINE bf16 to_bf16(float value) {
    uint32_t bits = bits_of_float(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (bf16)rounded;
}

// Element access for code that serves both dtypes; half is a constant where this is inlined.
INLINE float load(const void *data, int64_t index, const int half) {
    return half ? from_bf16(((const bf16 *)data)[index]) : ((const float *)data)[index];
}

INLINE void store(void *data, int64_t index, float value, const int half) {
    if (half)
        ((bf16 *)data)[index] = to_bf16(value);
    else
        ((float *)data)[index] = value;
}

// The value as the model's dtype would hold it.
INLINE float rounded(float value, const int half) {
    return half ? from_bf16(to_bf16(value)) : value;
}

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t vector_int __attribute__((vector_size(4 * LANES)));

INLINE vector fused(vector a, vector b, vector c) {
#if defined(__AVX512F__)
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    vector out;
    for (int i = 0; i < LANES; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
#endif
}

INLINE vector splat(float value) { return value - (vector){0}; }

INLINE vector vector_load(const void *data) {
    vector out;
    memcpy(&out, data, sizeof out);
    return out;
}

INLINE void vector_store(void *data, vector value) { memcpy(data, &value, sizeof value); }

typedef uint16_t vector_bf16 __attribute__((vector_size(2 * LANES)));
typedef uint32_t vector_bits __attribute__((vector_size(4 * LANES)));

// LANES elements from index on, as load() and store() take one.
INLINE vector load_lanes(const void *data, int64_t index, const int half) {
    if (!half) return vector_load((const float *)data + index);
    vector_bf16 words;
    memcpy(&words, (const bf16 *)data + index, sizeof words);
    return (vector)(__builtin_convertvector(words, vector_bits) << 16);
}

INLINE vector_bits bf16_lanes(vector value) {
    vector_bits bits = (vector_bits)value, nan = (vector_bits)(value != value);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (nan & 0x7fc0) | (~nan & bits);
}

INLINE void store_lanes(void *data, int64_t index, vector value, const int half) {
    if (!half) {
        vector_store((float *)data + index, value);
        return;
    }
    vector_bf16 words = __builtin_convertvector(bf16_lanes(value), vector_bf16);
    memcpy((bf16 *)data + index, &words, sizeof words);
}

INLINE vector rounded_lanes(vector value, const int half) {
    return half ? (vector)(bf16_lanes(value) << 16) : value;
}

// 0 1 2 ... : read from memory, since gcc builds such a constant lane by lane.
static const int32_t RAMP[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

INLINE vector_int lanes_from(int first) {
    vector_int out;
    memcpy(&out, RAMP + first, sizeof out);
    return out;
}

// Lane i of the result is lane (i + by) % LANES.
INLINE vector rotate(vector v, int by) { return __builtin_shuffle(v, lanes_from(by)); }

// Lane by lane, a > b ? a : b.
INLINE vector maximum(vector a, vector b) {
#if defined(__AVX512F__)
    return (vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vector_int mask = a > b;
    return (vector)((mask & (vector_int)a) | (~mask & (vector_int)b));
#endif
}

// Lane by lane, t < limit ? 0 : value; a NaN in t keeps the value.
INLINE vector zero_below(vector value, vector t, float limit) {
#if defined(__AVX512F__)
    __mmask16 kept = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(limit), _CMP_NLT_UQ);
    return (vector)_mm512_maskz_mov_ps(kept, (__m512)value);
#else
    return (vector)((vector_int)value & ~(vector_int)(t < splat(limit)));
#endif
}

// The first count lanes of a, then those of b.
INLINE vector first_lanes(int64_t count, vector a, vector b) {
    vector_int lane = lanes_from(0);
    int32_t kept = count < 0 ? 0 : count > LANES ? LANES : (int32_t)count;
#if defined(__AVX512F__)
    __mmask16 bits = _mm512_cmplt_epi32_mask((__m512i)lane, _mm512_set1_epi32(kept));
    return (vector)_mm512_mask_blend_ps(bits, (__m512)b, (__m512)a);
#else
    vector_int mask = lane < kept;
    return (vector)((mask & (vector_int)a) | (~mask & (vector_int)b));
#endif
}

#endif
