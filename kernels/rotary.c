// Rotary position embedding and the store into the pages; the formula stands in rotary.py.
#include "common.h"

typedef struct {
    int64_t tokens, query_heads, groups, head, row_stride;  // row_stride: elements between qkv rows
    int64_t table_rows, pages, layers, layer, slots;
} RotaryShape;

// Separate multiply and add, never fused: the same bits as the torch reference.
INLINE void rotate_head(const void *in, int64_t from, void *out, int64_t to, const float *cosine,
                        const float *sine, int64_t head, const int half) {
    int64_t middle = head / 2;
    for (int64_t i = 0; i < middle; i++) {
        float low = load(in, from + i, half), high = load(in, from + middle + i, half);
        store(out, to + i, low * cosine[i] - high * sine[i], half);
        store(out, to + middle + i, high * cosine[i] + low * sine[i], half);
    }
}

INLINE void rotate_token(const void *qkv, const float *cosine, const float *sine, void *pages,
                         void *q, int64_t token, int64_t position, int64_t page, int64_t slot,
                         const RotaryShape *shape, const int half) {
    int64_t head = shape->head, groups = shape->groups, queries = shape->query_heads;
    const float *c = cosine + position * (head / 2), *s = sine + position * (head / 2);
    int64_t row = token * shape->row_stride, bytes = half ? 2 : 4;
    for (int64_t n = 0; n < queries; n++)
        rotate_head(qkv, row + n * head, q, (token * queries + n) * head, c, s, head, half);
    int64_t base = (page * shape->layers + shape->layer) * 2 * groups;
    for (int64_t g = 0; g < groups; g++) {
        int64_t k = ((base + g) * shape->slots + slot) * head;
        int64_t v = ((base + groups + g) * shape->slots + slot) * head;
        rotate_head(qkv, row + (queries + g) * head, pages, k, c, s, head, half);
        memcpy((char *)pages + v * bytes,
               (const char *)qkv + (row + (queries + groups + g) * head) * bytes, head * bytes);
    }
}

// Every index is checked before the first byte is written.
static int64_t check(const int32_t *position, const int32_t *page, const int32_t *slot,
                     const RotaryShape *shape) {
    for (int64_t t = 0; t < shape->tokens; t++) {
        if (position[t] < 0 || position[t] >= shape->table_rows) return REFUSED_POSITION;
        if (page[t] < 0 || page[t] >= shape->pages) return REFUSED_PAGE;
        if (slot[t] < 0 || slot[t] >= shape->slots) return REFUSED_SLOT;
    }
    return 0;
}

int64_t penstock_rotate(const void *qkv, const float *cosine, const float *sine,
                        const int32_t *position, const int32_t *page, const int32_t *slot,
                        void *pages, void *q, const RotaryShape *shape, int64_t half,
                        int64_t threads) {
    int64_t status = check(position, page, slot, shape);
    if (status) return status;
    if (shape->tokens * shape->row_stride < 32768) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < shape->tokens; t++) {
        if (half)
            rotate_token(qkv, cosine, sine, pages, q, t, position[t], page[t], slot[t], shape, 1);
        else
            rotate_token(qkv, cosine, sine, pages, q, t, position[t], page[t], slot[t], shape, 0);
    }
    return 0;
}
