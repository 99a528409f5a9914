// Products of a few rows with one of many weights: experts, and the heads of latent attention.
//
// A weight lies in units of 64 outputs, a unit in blocks of 16, a block depth by depth, 16 words
// each; what misses in the last unit is zeros. For bf16 a word is two inputs (even low, odd high);
// where the processor multiplies such pairs (AVX512_BF16) rows are pairs too, elsewhere weights are
// widened as they are loaded, and rows beforehand. An output is one chain along the depth, whatever
// rows stand beside it.
#ifndef PENSTOCK_GROUPED_H
#define PENSTOCK_GROUPED_H

#include "common.h"

enum { PLAIN, WIDENED, PAIRS };  // fp32 words; bf16 pairs, widened; bf16 pairs as they are
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define HALF_MODE PAIRS
#else
#define HALF_MODE WIDENED
#endif

enum { BLOCK = 16, UNIT = 64, ROWS = 6, VECTORS = BLOCK / LANES };
#if LANES == 16
enum { BLOCKS = 4 };  // of one tile: 24 sums, 4 columns, 1 broadcast: of 32 registers
#else
enum { BLOCKS = 1 };  // 12 sums, 2 columns, 1 broadcast: of 16
#endif
// A tile of few rows is of more blocks: its sums are chains, and more of them hide their latency.
enum { FEW_ROWS = 2, BLOCKS_OF_FEW = 4 / VECTORS > 0 ? 4 / VECTORS : 1 };

// Bytes of one element of a row as the tile reads it, and words of a depth.
INLINE int64_t row_bytes(int64_t elements, const int mode) {
    return elements * (mode == PAIRS ? 2 : 4);
}

INLINE int64_t depth_of(int64_t inputs, const int mode) {
    return mode == PLAIN ? inputs : inputs / 2;
}

INLINE int64_t units_of(int64_t outputs) { return (outputs + UNIT - 1) / UNIT; }

INLINE int64_t unit_bytes(int64_t inputs, const int mode) {
    return depth_of(inputs, mode) * UNIT * 4;
}

// Keeps a loaded vector in its register; gcc would rather load it again for every row.
#if defined(__AVX512F__)
#define KEEP(value) __asm__ volatile("" : "+v"(value))
#elif defined(__AVX2__)
#define KEEP(value) __asm__ volatile("" : "+x"(value))
#else
#define KEEP(value) ((void)0)
#endif

INLINE vector word_of(const char *word) {
    int32_t bits;
    memcpy(&bits, word, 4);
    vector value = (vector)(bits - (vector_int){0});
    KEEP(value);
    return value;
}

INLINE vector multiply_word(vector sum, vector row, vector column, const int mode) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    if (mode == PAIRS) return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)row, (__m512bh)column);
#endif
    (void)mode;
    return fused(row, column, sum);
}

// One step of rows x vectors sums: row words at `offset`, columns c0.. in registers. Few rows keep
// their words in registers and take column after column, many rows the other way round.
#define STEP(offset, c0, c1, c2, c3)                                                     \
    if (rows > FEW_ROWS) {                                                               \
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) {                         \
            vector word = word_of(row[r] + (offset));                                    \
            sum[r][0] = multiply_word(sum[r][0], word, c0, mode);                        \
            if (vectors > 1) sum[r][1] = multiply_word(sum[r][1], word, c1, mode);       \
            if (vectors > 2) sum[r][2] = multiply_word(sum[r][2], word, c2, mode);       \
            if (vectors > 3) sum[r][3] = multiply_word(sum[r][3], word, c3, mode);       \
        }                                                                                \
    } else {                                                                             \
        vector first = word_of(row[0] + (offset));                                       \
        vector second = rows > 1 ? word_of(row[1] + (offset)) : first;                   \
        COLUMN(0, c0) COLUMN(1, c1) COLUMN(2, c2) COLUMN(3, c3)                          \
    }

#define COLUMN(v, expression)                                                            \
    if (vectors > v) {                                                                   \
        vector column = expression;                                                      \
        sum[0][v] = multiply_word(sum[0][v], first, column, mode);                       \
        if (rows > 1) sum[1][v] = multiply_word(sum[1][v], second, column, mode);        \
    }

enum { WHOLE, LOW, HIGH };

// A vector of a depth's columns, or the low or high bf16 of each word in fp32.
INLINE vector column_of(const char *weight, int64_t block_bytes, const int v, const int part) {
    vector words = vector_load(weight + v / VECTORS * block_bytes + v % VECTORS * LANES * 4);
    if (part == LOW) words = (vector)((vector_int)words << 16);
    if (part == HIGH) words = (vector)((vector_int)words & (int32_t)0xffff0000);
    KEEP(words);
    return words;
}

// Both halves of a word are loaded for themselves: words kept for the second would be one register
// too many.
#define COLUMNS(part, offset)                                                            \
    {                                                                                    \
        const char *from = weight;                                                       \
        __asm__ volatile("" : "+r"(from));                                               \
        vector c0 = column_of(from, block_bytes, 0, part);                               \
        vector c1 = vectors > 1 ? column_of(from, block_bytes, 1, part) : c0;            \
        vector c2 = vectors > 2 ? column_of(from, block_bytes, 2, part) : c0;            \
        vector c3 = vectors > 3 ? column_of(from, block_bytes, 3, part) : c0;            \
        STEP(offset, c0, c1, c2, c3)                                                     \
    }

// out[row][column], UNIT floats from row to row, for so many blocks. stride: bytes from one word of
// a row to its next.
INLINE void tile(const char *const *row, int64_t stride, const char *weight, int64_t depth,
                 float *out, const int rows, const int blocks, const int mode) {
    const int vectors = blocks * VECTORS;
    vector sum[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = splat(0.0f);
    int64_t block_bytes = depth * BLOCK * 4;
    for (int64_t d = 0; d < depth; d++, weight += BLOCK * 4) {
        if (mode == WIDENED) {
            COLUMNS(LOW, d * 2 * stride)
            COLUMNS(HIGH, (d * 2 + 1) * stride)
        } else {
            COLUMNS(WHOLE, d * stride)
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            vector_store(out + r * UNIT + v / VECTORS * BLOCK + v % VECTORS * LANES, sum[r][v]);
}

// One unit: out[row][64] of up to ROWS rows, whose words lie `stride` bytes apart.
INLINE void strided_product(const char *const *row, int64_t stride, int64_t rows,
                            const char *weight, int64_t inputs, float *out, const int mode) {
    int64_t depth = depth_of(inputs, mode);
    const int step = rows <= FEW_ROWS ? BLOCKS_OF_FEW : BLOCKS;
    for (int block = 0; block < UNIT / BLOCK; block += step) {
        const char *from = weight + block * depth * BLOCK * 4;
        float *to = out + block * BLOCK;
        switch (rows) {
            case 6: tile(row, stride, from, depth, to, 6, BLOCKS, mode); break;
            case 5: tile(row, stride, from, depth, to, 5, BLOCKS, mode); break;
            case 4: tile(row, stride, from, depth, to, 4, BLOCKS, mode); break;
            case 3: tile(row, stride, from, depth, to, 3, BLOCKS, mode); break;
            case 2: tile(row, stride, from, depth, to, 2, BLOCKS_OF_FEW, mode); break;
            case 1: tile(row, stride, from, depth, to, 1, BLOCKS_OF_FEW, mode); break;
        }
    }
}

// As strided_product, of rows without gaps.
INLINE void unit_product(const char *const *row, int64_t rows, const char *weight, int64_t inputs,
                         float *out, const int mode) {
    strided_product(row, 4, rows, weight, inputs, out, mode);
}

#endif
