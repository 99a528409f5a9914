// Counter-based Gumbel noise; the formula, step by step, stands in noise.py. No fused multiply-add
// and no library function here: torch and every other processor give the same bits.
#include "common.h"

// Counters at a time, four tokens each. Above 16, so that gcc vectorises the loops; up to 16 it
// unrolls them instead.
enum { WIDE = 32, TOKENS = 4 * WIDE };

typedef struct {
    uint32_t word[4][WIDE];
} Counters;

INLINE void philox(Counters *c, uint32_t key_0, uint32_t key_1) {
    for (int round = 0; round < 10; round++, key_0 += 0x9E3779B9u, key_1 += 0xBB67AE85u)
        for (int i = 0; i < WIDE; i++) {
            uint64_t product_0 = (uint64_t)0xD2511F53u * c->word[0][i];
            uint64_t product_1 = (uint64_t)0xCD9E8D57u * c->word[2][i];
            uint32_t first = (uint32_t)(product_1 >> 32) ^ c->word[1][i] ^ key_0;
            uint32_t third = (uint32_t)(product_0 >> 32) ^ c->word[3][i] ^ key_1;
            c->word[0][i] = first;
            c->word[1][i] = (uint32_t)product_1;
            c->word[2][i] = third;
            c->word[3][i] = (uint32_t)product_0;
        }
}

// e ln 2 + log(1 + f)
INLINE float log_of_parts(float e, float f) {
    float square = f * f;
    float p = 7.0376836292e-2f;
    p = p * f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float rest = p * f * square + e * -2.12194440e-4f;
    rest = rest + square * -0.5f;
    return (f + rest) + e * 0.693359375f;
}

INLINE int32_t exponent_of(float y) {
    return (int32_t)(bits_of_float(y) - 0x3f3504f3u) >> 23;
}

INLINE float fraction_of(float y, int32_t exponent) {
    return float_of_bits(bits_of_float(y) - ((uint32_t)exponent << 23)) - 1.0f;
}

// condition ? a : b by bits: a branch here would keep gcc from vectorising.
INLINE float chosen(int condition, float a, float b) {
    uint32_t mask = -(uint32_t)condition;
    return float_of_bits((bits_of_float(a) & mask) | (bits_of_float(b) & ~mask));
}

INLINE float gumbel(uint32_t word) {
    float u = ((float)word + 0.5f) * 0x1p-32f;
    float above = ((float)~word + 0.5f) * -0x1p-32f;
    int near_one = word >= 3037000500u;
    int32_t e = exponent_of(u);
    float f = chosen(near_one, above, fraction_of(u, e));
    float y = -log_of_parts(chosen(near_one, 0.0f, (float)e), f);
    e = exponent_of(y);
    return -log_of_parts((float)e, fraction_of(y, e));
}

// Noise of the TOKENS tokens from 4 * block on.
INLINE void gumbel_block(int64_t seed, int64_t choice, int64_t position, int64_t block,
                         float *out) {
    Counters c;
    for (int i = 0; i < WIDE; i++) {
        c.word[0][i] = (uint32_t)(block + i);
        c.word[1][i] = (uint32_t)position;
        c.word[2][i] = (uint32_t)choice;
        c.word[3][i] = 0;
    }
    philox(&c, (uint32_t)seed, (uint32_t)((uint64_t)seed >> 32));
    float value[4][WIDE];
    for (int lane = 0; lane < 4; lane++)
        for (int i = 0; i < WIDE; i++) value[lane][i] = gumbel(c.word[lane][i]);
    for (int i = 0; i < WIDE; i++)
        for (int lane = 0; lane < 4; lane++) out[4 * i + lane] = value[lane][i];
}

// out [rows][count]: tokens first .. first + count.
int64_t penstock_gumbel(const int64_t *seed, const int64_t *choice, const int64_t *position,
                        int64_t rows, int64_t first, int64_t count, float *out, int64_t threads) {
    int64_t start = first / TOKENS, blocks = (first + count + TOKENS - 1) / TOKENS - start;
    if (rows * blocks < 32) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < rows * blocks; unit++) {
        int64_t row = unit / blocks, token = (start + unit % blocks) * TOKENS;
        float value[TOKENS];
        gumbel_block(seed[row], choice[row], position[row], token / 4, value);
        int64_t from = token < first ? first - token : 0;
        int64_t to = first + count - token < TOKENS ? first + count - token : TOKENS;
        float *place = out + row * count + token + from - first;
        if (to > from) memcpy(place, value + from, (to - from) * sizeof(float));
    }
    return 0;
}

// out [rows][count]: the tokens listed, [rows][count].
int64_t penstock_gumbel_at(const int64_t *seed, const int64_t *choice, const int64_t *position,
                           const int64_t *token, int64_t rows, int64_t count, float *out) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < count; i++) {
            int64_t id = token[row * count + i];
            Counters c = {{{(uint32_t)(id >> 2)}, {(uint32_t)position[row]},
                           {(uint32_t)choice[row]}, {0}}};
            philox(&c, (uint32_t)seed[row], (uint32_t)((uint64_t)seed[row] >> 32));
            out[row * count + i] = gumbel(c.word[id & 3][0]);
        }
    return 0;
}
