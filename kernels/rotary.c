// Rotary position embedding and the store into the pages; the formula stands in rotary.py.
#include "norm.h"

typedef struct {
    int64_t tokens, query_heads, groups, head, row_stride;  // row_stride: elements between rows
    int64_t table_rows, pages, layers, layer, slots;
    int64_t held;  // key heads that a page holds; ours are `groups` of them, side by side
    int64_t interleaved, half;
    float epsilon;  // of the norms
} StoreShape;

typedef struct {
    int64_t tokens, heads, columns, token_stride, head_stride;  // strides in elements
    int64_t table_rows, interleaved, half;
} RotateShape;

typedef struct {
    const float *cosine, *sine;
    const int32_t *position, *page, *slot;
} Places;

// Separate multiply and add, never fused: the same bits as the torch reference. Both ends may be
// the same, since a pair is read before it is written.
INLINE void rotate_columns(const void *in, int64_t from, void *out, int64_t to, const float *cosine,
                           const float *sine, int64_t columns, int64_t interleaved,
                           const int half) {
    int64_t apart = interleaved ? 1 : columns / 2, step = interleaved ? 2 : 1, i = 0;
    for (; !interleaved && i + LANES <= apart; i += LANES) {
        vector low = load_lanes(in, from + i, half), high = load_lanes(in, from + apart + i, half);
        vector c = vector_load(cosine + i), s = vector_load(sine + i);
        store_lanes(out, to + i, low * c - high * s, half);
        store_lanes(out, to + apart + i, high * c + low * s, half);
    }
    for (; i < columns / 2; i++) {
        int64_t at = i * step;
        float low = load(in, from + at, half), high = load(in, from + at + apart, half);
        store(out, to + at, low * cosine[i] - high * sine[i], half);
        store(out, to + at + apart, high * cosine[i] + low * sine[i], half);
    }
}

// norm may be null: then the head is rotated as it is.
INLINE void norm_and_rotate(const void *in, int64_t from, void *out, int64_t to, const void *norm,
                            const float *cosine, const float *sine, const StoreShape *shape,
                            const int half) {
    if (norm) {
        norm_elements(in, from, norm, out, to, shape->head, shape->epsilon, half);
        in = out;
        from = to;
    }
    rotate_columns(in, from, out, to, cosine, sine, shape->head, 0, half);
}

INLINE void copy(const void *in, int64_t from, void *out, int64_t to, int64_t count,
                 const int half) {
    int64_t bytes = half ? 2 : 4;
    memcpy((char *)out + to * bytes, (const char *)in + from * bytes, count * bytes);
}

INLINE void store_token(const void *qkv, const Places *places, void *pages, void *q,
                        const void *q_norm, const void *k_norm, int64_t token,
                        const StoreShape *shape, const int half) {
    int64_t head = shape->head, groups = shape->groups, queries = shape->query_heads;
    int64_t row = token * shape->row_stride, angle = places->position[token] * (head / 2);
    const float *cosine = places->cosine + angle, *sine = places->sine + angle;
    for (int64_t n = 0; n < queries; n++)
        norm_and_rotate(qkv, row + n * head, q, (token * queries + n) * head, q_norm, cosine, sine,
                        shape, half);
    int64_t base = (places->page[token] * shape->layers + shape->layer) * 2 * shape->held;
    int64_t slot = places->slot[token];
    for (int64_t g = 0; g < groups; g++) {
        int64_t k = ((base + g) * shape->slots + slot) * head;
        int64_t v = ((base + shape->held + g) * shape->slots + slot) * head;
        norm_and_rotate(qkv, row + (queries + g) * head, pages, k, k_norm, cosine, sine, shape,
                        half);
        copy(qkv, row + (queries + groups + g) * head, pages, v, head, half);
    }
}

// head is the width of a row, query_heads the number of its first columns, which are normalised;
// the others are rotated.
INLINE void store_latent(const void *compressed, const void *norm, const Places *places,
                         void *pages, int64_t token, const StoreShape *shape, const int half) {
    int64_t rank = shape->query_heads, columns = shape->head - rank;
    int64_t row = token * shape->row_stride, angle = places->position[token] * (columns / 2);
    int64_t page = places->page[token] * shape->layers + shape->layer;
    int64_t to = (page * shape->slots + places->slot[token]) * shape->head;
    norm_elements(compressed, row, norm, pages, to, rank, shape->epsilon, half);
    rotate_columns(compressed, row + rank, pages, to + rank, places->cosine + angle,
                   places->sine + angle, columns, shape->interleaved, half);
}

static int64_t check_positions(const int32_t *position, int64_t tokens, int64_t table_rows) {
    for (int64_t t = 0; t < tokens; t++)
        if (position[t] < 0 || position[t] >= table_rows) return REFUSED_POSITION;
    return 0;
}

// Every index is checked before the first byte is written.
static int64_t check(const Places *places, const StoreShape *shape) {
    int64_t status = check_positions(places->position, shape->tokens, shape->table_rows);
    for (int64_t t = 0; t < shape->tokens && !status; t++) {
        if (places->page[t] < 0 || places->page[t] >= shape->pages) status = REFUSED_PAGE;
        if (places->slot[t] < 0 || places->slot[t] >= shape->slots) status = REFUSED_SLOT;
    }
    return status;
}

// q_norm and k_norm may be null.
int64_t penstock_rotate_and_store(const void *qkv, const float *cosine, const float *sine,
                                  const int32_t *position, const int32_t *page,
                                  const int32_t *slot, void *pages, void *q, const void *q_norm,
                                  const void *k_norm, const StoreShape *shape, int64_t threads) {
    Places places = {cosine, sine, position, page, slot};
    int64_t status = check(&places, shape);
    if (status) return status;
    if (shape->tokens * shape->row_stride < 32768) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < shape->tokens; t++) {
        if (shape->half)
            store_token(qkv, &places, pages, q, q_norm, k_norm, t, shape, 1);
        else
            store_token(qkv, &places, pages, q, q_norm, k_norm, t, shape, 0);
    }
    return 0;
}

int64_t penstock_store_latent(const void *compressed, const void *norm, const float *cosine,
                              const float *sine, const int32_t *position, const int32_t *page,
                              const int32_t *slot, void *pages, const StoreShape *shape,
                              int64_t threads) {
    Places places = {cosine, sine, position, page, slot};
    int64_t status = check(&places, shape);
    if (status) return status;
    if (shape->tokens * shape->head < 32768) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < shape->tokens; t++) {
        if (shape->half)
            store_latent(compressed, norm, &places, pages, t, shape, 1);
        else
            store_latent(compressed, norm, &places, pages, t, shape, 0);
    }
    return 0;
}

// out is [tokens][heads][columns], without gaps.
int64_t penstock_rotate(const void *x, const float *cosine, const float *sine,
                        const int32_t *position, void *out, const RotateShape *shape,
                        int64_t threads) {
    int64_t status = check_positions(position, shape->tokens, shape->table_rows);
    if (status) return status;
    int64_t heads = shape->heads, columns = shape->columns;
    if (shape->tokens * heads * columns < 32768) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < shape->tokens; t++) {
        const float *c = cosine + position[t] * (columns / 2), *s = sine + position[t] * (columns / 2);
        for (int64_t n = 0; n < heads; n++) {
            int64_t from = t * shape->token_stride + n * shape->head_stride;
            int64_t to = (t * heads + n) * columns;
            if (shape->half)
                rotate_columns(x, from, out, to, c, s, columns, shape->interleaved, 1);
            else
                rotate_columns(x, from, out, to, c, s, columns, shape->interleaved, 0);
        }
    }
    return 0;
}
