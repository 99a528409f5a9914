// The parts of attention.c that know how numbers lie in memory.
//
// "half" here means: operands are pairs of bf16 in one 32-bit word, and one instruction multiplies
// two pairs and adds both products (AVX512_BF16). Otherwise a word is one fp32; bf16 pages are then
// widened.

#ifndef PENSTOCK_ATTENTION_H
#define PENSTOCK_ATTENTION_H

#include "common.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define DOT 1
#else
#define DOT 0
#endif

enum { CHUNK = 64 };

typedef struct {
    int64_t sequences, table_width, query_heads, groups, head, slots, layers, layer, pages;
    int64_t sides;   // 2: keys and values; 1: the values are the first columns of the keys
    int64_t held;    // key heads that a page holds; ours are `groups` of them, side by side
    int64_t value;   // columns of a value
    int64_t window;  // keys a row sees at most; 0: all
    int64_t half;    // 1: q, pages and out are bf16; 0: fp32
    float scale;
} AttentionShape;

// out[row][column] = (decay ? out * decay[row] : 0) + sum over depth of a[row][d] * b[d][column].
// a, b in words; strides in words; out in fp32.
typedef struct {
    const char *a, *b;
    float *out;
    int64_t a_stride, b_stride, out_stride, depth;
    const float *decay;
} Product;

INLINE int64_t words(int64_t elements, const int half) { return half ? elements / 2 : elements; }

INLINE vector word_splat(const char *word) {
    int32_t bits;
    memcpy(&bits, word, 4);
    return (vector)(bits - (vector_int){0});
}

INLINE vector multiply_add(vector sum, vector a, vector b, const int half) {
#if DOT
    if (half) return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return fused(a, b, sum);
}

// Keeps a loaded vector in its register; gcc would rather load it again for every row.
#if defined(__AVX512F__)
#define PIN(value) __asm__("" : "+v"(value))
#elif defined(__AVX2__)
#define PIN(value) __asm__("" : "+x"(value))
#else
#define PIN(value) ((void)0)
#endif

INLINE vector pinned(const char *data) {
    vector value = vector_load(data);
    PIN(value);
    return value;
}

// rows x vectors sums stay in registers over the whole depth.
INLINE void tile(const Product *p, int64_t row, int64_t column, const int rows, const int vectors,
                 const int half) {
    vector sum[6][4];
    float *out = p->out + row * p->out_stride + column;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            sum[r][v] = p->decay ? vector_load(out + r * p->out_stride + v * LANES) *
                                       p->decay[row + r]
                                 : splat(0.0f);
    const char *a = p->a + row * p->a_stride * 4, *b = p->b + column * 4;
    for (int64_t d = 0; d < p->depth; d++, a += 4, b += p->b_stride * 4) {
        // Named one by one: an array of them would be kept in memory.
        vector b0 = pinned(b), b1 = vectors > 1 ? pinned(b + LANES * 4) : b0;
        vector b2 = vectors > 2 ? pinned(b + LANES * 8) : b0;
        vector b3 = vectors > 3 ? pinned(b + LANES * 12) : b0;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vector word = word_splat(a + r * p->a_stride * 4);
            sum[r][0] = multiply_add(sum[r][0], word, b0, half);
            if (vectors > 1) sum[r][1] = multiply_add(sum[r][1], word, b1, half);
            if (vectors > 2) sum[r][2] = multiply_add(sum[r][2], word, b2, half);
            if (vectors > 3) sum[r][3] = multiply_add(sum[r][3], word, b3, half);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            vector_store(out + r * p->out_stride + v * LANES, sum[r][v]);
}

#if LANES == 16
enum { TILE_VECTORS = 4 };  // 24 sums, 4 columns, 1 broadcast: of 32 registers
#else
enum { TILE_VECTORS = 2 };  // 12 sums, 2 columns, 1 broadcast: of 16
#endif

INLINE void tile_rows(const Product *p, int64_t rows, int64_t column, const int vectors,
                      const int half) {
    int64_t row = 0;
    for (; row + 6 <= rows; row += 6) tile(p, row, column, 6, vectors, half);
    switch (rows - row) {
        case 5: tile(p, row, column, 5, vectors, half); break;
        case 4: tile(p, row, column, 4, vectors, half); break;
        case 3: tile(p, row, column, 3, vectors, half); break;
        case 2: tile(p, row, column, 2, vectors, half); break;
        case 1: tile(p, row, column, 1, vectors, half); break;
    }
}

// columns is a multiple of 16. A sum is a chain, and one or two rows need more of them at a time.
INLINE void multiply(const Product *p, int64_t rows, int64_t columns, const int half) {
    int64_t column = 0, wide = TILE_VECTORS * LANES;
    if (rows <= 2 && LANES < 16)
        for (; column + 4 * LANES <= columns; column += 4 * LANES) {
            if (rows == 1)
                tile(p, 0, column, 1, 4, half);
            else
                tile(p, 0, column, 2, 4, half);
        }
    for (; column + wide <= columns; column += wide)
        tile_rows(p, rows, column, TILE_VECTORS, half);
    for (; column < columns; column += LANES) tile_rows(p, rows, column, 1, half);
}

// Weights go to memory as the next product wants them; what was stored is returned, so that the
// total is the sum of the weights in use.
INLINE vector store_weights(char *weights, int64_t index, vector value, const int half) {
#if DOT
    if (half) {
        __m256i stored = (__m256i)_mm512_cvtneps_pbh((__m512)value);
        memcpy(weights + index * 2, &stored, 32);
        return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16);
    }
#endif
    vector_store(weights + index * 4, value);
    return value;
}

// Fetches into the second-level cache what the next chunk will read: pages lie anywhere, so no
// hardware prefetcher follows them.
INLINE void fetch_early(const char *address) { __builtin_prefetch(address, 0, 2); }

#if LANES == 16
INLINE __m512 pair_low(__m512 a, __m512 b) {
    return (__m512)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
}

INLINE __m512 pair_high(__m512 a, __m512 b) {
    return (__m512)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
}

// 16 keys x 16 words, transposed in registers; words from depth on are not read and not written.
INLINE void transpose_tile(const char *const *key, const char *const *next, int64_t word,
                           int64_t depth, char *out) {
    int count = depth - word < 16 ? (int)(depth - word) : 16;
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_maskz_loadu_ps(mask, key[i] + word * 4);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) fetch_early(next[i] + word * 4);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = pair_low(b[i], b[i + 2]);
        a[i + 1] = pair_high(b[i], b[i + 2]);
        a[i + 2] = pair_low(b[i + 1], b[i + 3]);
        a[i + 3] = pair_high(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 low = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        __m512 high = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        __m512 low_2 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        __m512 high_2 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
        b[i] = _mm512_shuffle_f32x4(low, low_2, 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(high, high_2, 0x88);
        b[i + 8] = _mm512_shuffle_f32x4(low, low_2, 0xdd);
        b[i + 12] = _mm512_shuffle_f32x4(high, high_2, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        if (i < count) _mm512_store_ps(out + i * CHUNK * 4, b[i]);
}
#endif

#if LANES == 8
// 8 keys x 8 columns in fp32, transposed in registers.
INLINE void transpose_eight(const char *const *key, int64_t d, float *out, const int half) {
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = (__m256)load_lanes(key[i], d, half);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * CHUNK, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * CHUNK, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
#endif

// Keys become columns: out[word][key] for the CHUNK keys. next: the keys of the next chunk.
INLINE void transpose_keys(const char *const *key, const char *const *next, char *out, int64_t head,
                           const int half, const int source_half) {
    int64_t depth = words(head, half);
#if LANES == 16
    if (half || !source_half) {
        for (int64_t first = 0; first < CHUNK; first += 16)
            for (int64_t word = 0; word < depth; word += 16)
                transpose_tile(key + first, next + first, word, depth,
                               out + (word * CHUNK + first) * 4);
        return;
    }
#endif
    for (int64_t i = 0; i < CHUNK; i++) {
        for (int64_t d = 0; d < head; d += source_half ? 32 : 16)
            fetch_early(next[i] + d * (source_half ? 2 : 4));
#if LANES != 8
        for (int64_t d = 0; d < head; d++)
            ((float *)out)[d * CHUNK + i] = load(key[i], d, source_half);
#endif
    }
#if LANES == 8
    for (int64_t d = 0; d < head; d += 8)
        for (int64_t i = 0; i < CHUNK; i += 8)
            transpose_eight(key + i, d, (float *)out + d * CHUNK + i, source_half);
#endif
}

#if DOT
// Where each half word comes from: i from the even row, 32 + i from the odd one.
static const uint16_t INTERLEAVE[64] = {
    0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
    24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63,
};

// Two rows of 32 bf16 into 32 words.
INLINE void interleave_wide(const char *even, const char *odd, char *out) {
    __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    __m512i first = _mm512_loadu_si512(INTERLEAVE), second = _mm512_loadu_si512(INTERLEAVE + 32);
    _mm512_store_si512(out, _mm512_permutex2var_epi16(a, first, b));
    _mm512_store_si512(out + 64, _mm512_permutex2var_epi16(a, second, b));
}

// Two rows of 16 bf16 into 16 words (even row low, odd row high).
INLINE void interleave(const char *even, const char *odd, char *out) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)odd));
    _mm512_store_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#endif

// Values stay rows; for half two keys share a word: out[pair][column] = (even key, odd key).
INLINE void pack_values(const char *const *key, const char *const *next, char *out, int64_t head,
                        const int half, const int source_half) {
#if DOT
    if (half) {
        for (int64_t i = 0; i < CHUNK; i += 2) {
            const char *even = key[i], *odd = key[i + 1];
            int64_t byte = 0;
            for (; byte + 64 <= head * 2; byte += 64, out += 128) {
                interleave_wide(even + byte, odd + byte, out);
                fetch_early(next[i] + byte);
                fetch_early(next[i + 1] + byte);
            }
            for (; byte < head * 2; byte += 32, out += 64) interleave(even + byte, odd + byte, out);
        }
        return;
    }
#endif
    for (int64_t i = 0; i < CHUNK; i++) {
        for (int64_t d = 0; d < head; d += source_half ? 32 : 16)
            fetch_early(next[i] + d * (source_half ? 2 : 4));
        for (int64_t d = 0; d < head; d += LANES)
            vector_store((float *)out + i * head + d, load_lanes(key[i], d, source_half));
    }
}

INLINE void load_query(const void *q, int64_t start, char *out, int64_t row, int64_t head,
                       const int half, const int source_half) {
    if (half || !source_half)
        memcpy(out + row * words(head, half) * 4, (const char *)q + start * (half ? 2 : 4),
               words(head, half) * 4);
    else
        for (int64_t i = 0; i < head; i += LANES)
            vector_store((float *)out + row * head + i, load_lanes(q, start + i, 1));
}

#endif
