// Paged causal attention; the formula and the order of every sum stand in attention.py.
//
// A work unit is (sequence, key head, block of query positions, some query heads of the group). Its
// rows, (position, head) in that order, walk the keys in chunks of 64 counted from position 0,
// from the first of which one of them sees something. Per chunk: K is transposed and V packed once
// for all rows, scores = Q K, softmax of the chunk, sums = sums * decay + P V. A chunk of which a
// row sees nothing leaves its sums as they are, so it may be walked for other rows' sake.
// Both products are the same tile: out[row][column] takes its terms one depth at a time, so its
// bits do not depend on how many other rows or columns stand beside it.
#include "attention.h"

enum { BLOCK_ROWS = 96, FEW_HEADS = 8 };
#define LOG2_E 1.44269504088896341f

typedef struct {
    int64_t sequence, group;
    int64_t first, count;      // query positions, counted from the sequence's first of this step
    int64_t head_first, heads;  // query heads of the group
} Unit;

typedef struct {
    const void *q;
    const void *pages;
    const int32_t *page_table, *query_start, *context;
    const float *sinks;  // or null
    void *out;
    const AttentionShape *shape;
} Call;

typedef struct {
    char *q, *k, *v, *weights;      // words: [rows][depth], [depth][CHUNK], [CHUNK depth][value]
    float *scores, *sums;           // [rows][CHUNK], [rows][value]
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

// One row of one chunk: scores become weights, the running maximum and total move on. Keys before
// `from` and from `to` on are masked: their weights are exactly 0, and the maximum does not see
// them. A row that has seen nothing yet has the maximum -inf and weights of 0.
INLINE void soften(const Scratch *s, int64_t row, int64_t from, int64_t to, float scale,
                   const int half) {
    enum { VECTORS = CHUNK / LANES };
    float *scores = s->scores + row * CHUNK;
    vector t[VECTORS], top = splat(-INFINITY);
    for (int i = 0; i < VECTORS; i++) {
        t[i] = vector_load(scores + i * LANES) * scale;
        if (to < CHUNK) t[i] = first_lanes(to - i * LANES, t[i], splat(-INFINITY));
        if (from > 0) t[i] = first_lanes(from - i * LANES, splat(-INFINITY), t[i]);
        top = maximum(top, t[i]);
    }
    float before = s->peak[row], peak = fold_max(top);
    peak = peak > before ? peak : before;
    float level = peak == -INFINITY ? 0.0f : peak;
    vector total = splat(0.0f);
    for (int i = 0; i < VECTORS; i++) {
        vector weight = power_of_two(t[i] - level);
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
        int64_t plane = (table[entry++] * shape->layers + shape->layer) * shape->sides * shape->held;
        int64_t row = (plane + unit->group) * shape->slots;
        const char *page = (const char *)call->pages + row * row_bytes;
        int64_t values = shape->sides == 2 ? shape->held * shape->slots * row_bytes : 0;
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
    int64_t rows = unit->count * unit->heads;
    int64_t value = shape->value, depth = words(shape->head, half);
    transpose_keys(at->key, next->key, s->k, shape->head, half, shape->half);
    pack_values(at->value, next->value, s->v, value, half, shape->half);
    Product scores = {s->q, s->k, s->scores, depth, CHUNK, CHUNK, depth, 0};
    multiply(&scores, rows, CHUNK, half);
    int64_t behind = keys - unit->count + 1 - first;  // the key behind the first position's own
    for (int64_t row = 0; row < rows; row++) {
        int64_t to = behind + row / unit->heads;
        soften(s, row, shape->window ? to - shape->window : 0, to, shape->scale * LOG2_E, half);
    }
    Product sums = {s->weights, s->v, s->sums, words(CHUNK, half), value, value,
                    words(CHUNK, half), s->decay};
    multiply(&sums, rows, value, half);
}

// Which of the step's [T][N] a unit's row is.
INLINE int64_t row_of(const Call *call, const Unit *unit, int64_t row) {
    const AttentionShape *shape = call->shape;
    int64_t ratio = shape->query_heads / shape->groups;
    int64_t token = call->query_start[unit->sequence] + unit->first + row / unit->heads;
    return token * shape->query_heads + unit->group * ratio + unit->head_first +
           row % unit->heads;
}

// A sink is one more score, of a key without value, seen first by every row.
INLINE void begin(const Call *call, const Unit *unit, const Scratch *s, const int half) {
    const AttentionShape *shape = call->shape;
    int64_t rows = unit->count * unit->heads;
    memset(s->sums, 0, rows * shape->value * sizeof(float));
    memset(s->total, 0, rows * LANES * sizeof(float));
    for (int64_t row = 0; row < rows; row++) {
        int64_t from = row_of(call, unit, row);
        load_query(call->q, from * shape->head, s->q, row, shape->head, half, shape->half);
        s->peak[row] = call->sinks ? call->sinks[from % shape->query_heads] * LOG2_E : -INFINITY;
        if (call->sinks) s->total[row * LANES] = 1.0f;
    }
}

INLINE void attend(const Call *call, const Unit *unit, const Scratch *s, const int half) {
    const AttentionShape *shape = call->shape;
    int64_t rows = unit->count * unit->heads, value = shape->value;
    int32_t behind = call->query_start[unit->sequence + 1] - call->query_start[unit->sequence];
    int64_t keys = call->context[unit->sequence] - behind + unit->first + unit->count;
    int64_t seen = shape->window ? keys - unit->count + 1 - shape->window : 0;
    int64_t start = seen > 0 ? seen / CHUNK * CHUNK : 0;
    begin(call, unit, s, half);
    Addresses at[2];
    locate(call, unit, s, start, keys, &at[0]);
    for (int64_t first = start, turn = 0; first < keys; first += CHUNK, turn ^= 1) {
        locate(call, unit, s, first + CHUNK, keys, &at[turn ^ 1]);
        attend_chunk(call, unit, s, first, keys, &at[turn], &at[turn ^ 1], half);
    }
    for (int64_t row = 0; row < rows; row++) {
        float total = fold_sum(vector_load(s->total + row * LANES));
        int64_t to = row_of(call, unit, row) * value;
        // Adding 0 makes -0 into 0: a masked key may otherwise decide the sign of a zero.
        for (int64_t i = 0; i < value; i += LANES) {
            vector mean = vector_load(s->sums + row * value + i) / total + 0.0f;
            store_lanes(call->out, to + i, mean, shape->half);
        }
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

// How the work is cut. Rows are independent, so that this changes no bit.
typedef struct {
    int64_t positions, heads;  // of one unit, at most
} Cut;

// Writes the units, or counts them where units is null.
static int64_t list_units(const Call *call, Cut cut, Unit *units) {
    const AttentionShape *shape = call->shape;
    int64_t count = 0, ratio = shape->query_heads / shape->groups;
    for (int64_t b = 0; b < shape->sequences; b++) {
        int64_t rows = (int64_t)call->query_start[b + 1] - call->query_start[b];
        // The last rows see the most keys and come first, so that no thread ends on a long unit.
        for (int64_t end = rows; end > 0; end -= cut.positions)
            for (int64_t part = 0; part < shape->groups * ratio; part += cut.heads) {
                int64_t first = end > cut.positions ? end - cut.positions : 0;
                int64_t head = part % ratio, heads = ratio - head;
                if (heads > cut.heads) heads = cut.heads;
                if (units)
                    units[count] = (Unit){b, part / ratio, first, end - first, head, heads};
                count++;
            }
    }
    return count;
}

// Units of as many rows as share a chunk's preparation well; fewer heads in each where threads
// would have none.
static Cut choose_cut(const Call *call, int64_t threads) {
    int64_t ratio = call->shape->query_heads / call->shape->groups;
    Cut cut = {BLOCK_ROWS > ratio ? BLOCK_ROWS / ratio : 1, ratio};
    while (cut.heads % 2 == 0 && (cut.heads > BLOCK_ROWS || (cut.heads > FEW_HEADS &&
           list_units(call, cut, 0) < threads)))
        cut.heads /= 2;
    return cut;
}

static int scratch_new(Scratch *s, int64_t rows, int64_t head, int64_t value) {
    int64_t sizes[] = {rows * head,  CHUNK * head, CHUNK * value, rows * CHUNK, rows * CHUNK,
                       rows * value, rows * LANES, rows,          rows,         head};
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
                           const int32_t *query_start, const int32_t *context,
                           const float *sinks, void *out, const AttentionShape *shape,
                           int64_t tokens, int64_t threads) {
    Call call = {q, pages, page_table, query_start, context, sinks, out, shape};
    int64_t status = check(&call, tokens);
    if (status || !tokens) return status;
    Cut cut = choose_cut(&call, threads);
    int64_t count = list_units(&call, cut, 0);
    Unit *units = malloc(count * sizeof(Unit));
    if (!units) return REFUSED_MEMORY;
    list_units(&call, cut, units);
    if (threads > count) threads = count;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch = {0};
        int ready = scratch_new(&scratch, cut.positions * cut.heads, shape->head, shape->value);
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
