// Paged causal attention; the formula and the order of every sum stand in attention.py.
//
// A work unit is (sequence, key head, block of query rows). Its rows, (query position, head of the
// group) in that order, walk the keys in chunks of 64 from position 0. Per chunk: K is transposed
// and V packed once for all rows, scores = Q K, softmax of the chunk, sums = sums * decay + P V.
// Both products are the same tile: out[row][column] takes its terms one depth at a time, so its
// bits do not depend on how many other rows or columns stand beside it.
#include "attention.h"

enum { BLOCK_ROWS = 96 };
#define LOG2_E 1.44269504088896341f

typedef struct {
    int64_t sequence, group, first, count;  // first, count: query rows of the sequence
} Unit;

typedef struct {
    const void *q;
    const void *pages;
    const int32_t *page_table, *query_start, *context;
    void *out;
    const AttentionShape *shape;
} Call;

typedef struct {
    char *q, *k, *v, *weights;      // words: [rows][depth], [depth][CHUNK], [CHUNK depth][head]
    float *scores, *sums;           // [rows][CHUNK], [rows][head]
    float *total;                   // [rows][LANES]: lanes are folded at the end
    float *peak, *decay;            // [rows]
    char *zeros;                    // [head]
} Scratch;

typedef struct {
    const char *key[CHUNK], *value[CHUNK];
} Addresses;

// p = 2^t for t <= 0: t = n + f, a polynomial for 2^f on [-1/2, 1/2] (relative error 2e-7; exactly
// 1 at f = 0), then n into the exponent. Below the smallest normal number the result is 0.
INLINE vector power_of_two(vector t) {
    vector magic = splat(12582912.0f);
    vector shifted = t + magic, f = t - (shifted - magic);
    vector p = splat(1.535336188319500e-4f);
    p = fused(p, f, splat(1.339887440266574e-3f));
    p = fused(p, f, splat(9.618437357674640e-3f));
    p = fused(p, f, splat(5.550332471162809e-2f));
    p = fused(p, f, splat(2.402264791363012e-1f));
    p = fused(p, f, splat(6.931472028550421e-1f));
    p = fused(p, f, splat(1.0f));
    p = p * (vector)(((vector_int)shifted << 23) + 0x3f800000);
    return zero_below(p, t, -126.0f);
}

// Folded in halves: lane i meets lane i + width.
INLINE float fold_max(vector v) {
#pragma GCC unroll 4
    for (int width = LANES / 2; width > 0; width /= 2) {
        vector other = rotate(v, width);
        v = maximum(v, other);
    }
    return v[0];
}

INLINE float fold_sum(vector v) {
#pragma GCC unroll 4
    for (int width = LANES / 2; width > 0; width /= 2) v += rotate(v, width);
    return v[0];
}

// One row of one chunk: scores become weights, the running maximum and total move on. Keys from
// visible on are masked; their weights are exactly 0, and the maximum does not see them.
INLINE void soften(const Scratch *s, int64_t row, int64_t visible, float scale, const int half) {
    enum { VECTORS = CHUNK / LANES };
    float *scores = s->scores + row * CHUNK;
    vector t[VECTORS], top = splat(-INFINITY);
    for (int i = 0; i < VECTORS; i++) {
        t[i] = vector_load(scores + i * LANES) * scale;
        if (visible < CHUNK)
            t[i] = first_lanes(visible - i * LANES, t[i], splat(-INFINITY));
        top = maximum(top, t[i]);
    }
    float before = s->peak[row], peak = fold_max(top);
    peak = peak > before ? peak : before;
    vector total = splat(0.0f);
    for (int i = 0; i < VECTORS; i++) {
        vector weight = power_of_two(t[i] - peak);
        total += store_weights(s->weights, row * CHUNK + i * LANES, weight, half);
    }
    float decay = 1.0f;
    if (before != peak) decay = power_of_two(splat(before - peak))[0];
    s->peak[row] = peak;
    s->decay[row] = decay;
    float *kept = s->total + row * LANES;
    vector_store(kept, vector_load(kept) * decay + total);
}

// Addresses of one chunk's keys and values for one key head; a row of zeros where the context ends.
INLINE void locate(const Call *call, const Unit *unit, const Scratch *s, int64_t first,
                   int64_t keys, Addresses *at) {
    const AttentionShape *shape = call->shape;
    const int32_t *table = call->page_table + unit->sequence * shape->table_width;
    int64_t row_bytes = shape->head * (shape->half ? 2 : 4);
    int64_t count = keys - first < CHUNK ? keys - first : CHUNK, i = 0;
    int64_t entry = first / shape->slots, slot = first % shape->slots;
    while (i < count) {
        int64_t plane = (table[entry++] * shape->layers + shape->layer) * 2 * shape->groups;
        int64_t row = (plane + unit->group) * shape->slots;
        const char *page = (const char *)call->pages + row * row_bytes;
        int64_t values = shape->groups * shape->slots * row_bytes;
        for (; slot < shape->slots && i < count; slot++, i++) {
            at->key[i] = page + slot * row_bytes;
            at->value[i] = page + slot * row_bytes + values;
        }
        slot = 0;
    }
    for (i = i > 0 ? i : 0; i < CHUNK; i++) at->key[i] = at->value[i] = s->zeros;
}

INLINE void attend_chunk(const Call *call, const Unit *unit, const Scratch *s, int64_t first,
                         int64_t keys, const Addresses *at, const Addresses *next, const int half) {
    const AttentionShape *shape = call->shape;
    int64_t ratio = shape->query_heads / shape->groups, rows = unit->count * ratio;
    int64_t head = shape->head, depth = words(head, half);
    transpose_keys(at->key, next->key, s->k, head, half, shape->half);
    pack_values(at->value, next->value, s->v, head, half, shape->half);
    Product scores = {s->q, s->k, s->scores, depth, CHUNK, CHUNK, depth, 0};
    multiply(&scores, rows, CHUNK, half);
    int64_t position = keys - unit->count;  // of the unit's first query row
    for (int64_t row = 0; row < rows; row++)
        soften(s, row, position + row / ratio + 1 - first, shape->scale * LOG2_E, half);
    Product sums = {s->weights, s->v, s->sums, words(CHUNK, half), head, head, words(CHUNK, half),
                    s->decay};
    multiply(&sums, rows, head, half);
}

// The address of element 0 of a unit's row in q or out: [T][N][H].
INLINE int64_t row_start(const Call *call, const Unit *unit, int64_t row) {
    const AttentionShape *shape = call->shape;
    int64_t ratio = shape->query_heads / shape->groups;
    int64_t token = call->query_start[unit->sequence] + unit->first + row / ratio;
    return (token * shape->query_heads + unit->group * ratio + row % ratio) * shape->head;
}

INLINE void attend(const Call *call, const Unit *unit, const Scratch *s, const int half) {
    const AttentionShape *shape = call->shape;
    int64_t rows = unit->count * (shape->query_heads / shape->groups), head = shape->head;
    int64_t begin = call->query_start[unit->sequence], end = call->query_start[unit->sequence + 1];
    int64_t keys = call->context[unit->sequence] - (end - begin) + unit->first + unit->count;
    for (int64_t row = 0; row < rows; row++) {
        load_query(call->q, row_start(call, unit, row), s->q, row, head, half, shape->half);
        s->peak[row] = -INFINITY;
    }
    memset(s->sums, 0, rows * head * sizeof(float));
    memset(s->total, 0, rows * LANES * sizeof(float));
    Addresses at[2];
    locate(call, unit, s, 0, keys, &at[0]);
    for (int64_t first = 0, turn = 0; first < keys; first += CHUNK, turn ^= 1) {
        locate(call, unit, s, first + CHUNK, keys, &at[turn ^ 1]);
        attend_chunk(call, unit, s, first, keys, &at[turn], &at[turn ^ 1], half);
    }
    for (int64_t row = 0; row < rows; row++) {
        float total = fold_sum(vector_load(s->total + row * LANES));
        int64_t start = row_start(call, unit, row);
        // Adding 0 makes -0 into 0: a masked key may otherwise decide the sign of a zero.
        for (int64_t i = 0; i < head; i++)
            store(call->out, start + i, s->sums[row * head + i] / total + 0.0f, shape->half);
    }
}

// Every index is checked before any page is touched.
static int64_t check(const Call *call, int64_t tokens) {
    const AttentionShape *shape = call->shape;
    if (call->query_start[0] != 0 || call->query_start[shape->sequences] != tokens)
        return REFUSED_ROWS;
    for (int64_t b = 0; b < shape->sequences; b++) {
        int64_t rows = (int64_t)call->query_start[b + 1] - call->query_start[b];
        int64_t context = call->context[b];
        if (rows < 0 || rows > context) return REFUSED_ROWS;
        int64_t used = (context + shape->slots - 1) / shape->slots;
        if (used > shape->table_width) return REFUSED_POSITION;
        for (int64_t i = 0; i < used; i++) {
            int32_t page = call->page_table[b * shape->table_width + i];
            if (page < 0 || page >= shape->pages) return REFUSED_PAGE;
        }
    }
    return 0;
}

static int64_t list_units(const Call *call, int64_t step, Unit *units) {
    const AttentionShape *shape = call->shape;
    int64_t count = 0;
    for (int64_t b = 0; b < shape->sequences; b++) {
        int64_t rows = (int64_t)call->query_start[b + 1] - call->query_start[b];
        // The last rows see the most keys and come first, so that no thread ends on a long unit.
        for (int64_t end = rows; end > 0; end -= step)
            for (int64_t g = 0; g < shape->groups; g++) {
                int64_t first = end > step ? end - step : 0;
                if (units) units[count] = (Unit){b, g, first, end - first};
                count++;
            }
    }
    return count;
}

static int scratch_new(Scratch *s, int64_t rows, int64_t head) {
    int64_t sizes[] = {rows * head, CHUNK * head, CHUNK * head, rows * CHUNK, rows * CHUNK,
                       rows * head, rows * LANES, rows,         rows,         head};
    void *parts[10];
    int64_t total = 0;
    for (int i = 0; i < 10; i++) total += (sizes[i] + 15) / 16 * 64;
    char *memory = aligned_alloc(64, total);
    if (!memory) return 0;
    for (int i = 0; i < 10; memory += (sizes[i] + 15) / 16 * 64, i++) parts[i] = memory;
    *s = (Scratch){parts[0], parts[1], parts[2], parts[3], parts[4],
                   parts[5], parts[6], parts[7], parts[8], parts[9]};
    memset(s->zeros, 0, head * sizeof(float));
    return 1;
}

int64_t penstock_attention(const void *q, const void *pages, const int32_t *page_table,
                           const int32_t *query_start, const int32_t *context, void *out,
                           const AttentionShape *shape, int64_t tokens, int64_t threads) {
    Call call = {q, pages, page_table, query_start, context, out, shape};
    int64_t status = check(&call, tokens);
    if (status || !tokens) return status;
    int64_t ratio = shape->query_heads / shape->groups;
    int64_t step = BLOCK_ROWS > ratio ? BLOCK_ROWS / ratio : 1;
    int64_t count = list_units(&call, step, 0);
    Unit *units = malloc(count * sizeof(Unit));
    if (!units) return REFUSED_MEMORY;
    list_units(&call, step, units);
    if (threads > count) threads = count;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {0};
        int ready = scratch_new(&scratch, step * ratio, shape->head);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            if (!ready) {
#pragma omp atomic write
                status = REFUSED_MEMORY;
            } else if (DOT && shape->half)
                attend(&call, &units[i], &scratch, DOT);
            else
                attend(&call, &units[i], &scratch, 0);
        }
        free(scratch.q);
    }
    free(units);
    return status;
}
