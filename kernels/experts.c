// A layer of experts in one call; the formulas stand in experts.py.
//
// A pair is (token, rank of the choice). Pairs are sorted by expert, within one by token, and meet
// their expert's weights unit by unit: gate and up give the pair's hidden row, down its output.
// Then each token sums its pairs in the order of their ranks.
#include "elementary.h"
#include "grouped.h"

enum { SILU, CLAMPED };

typedef struct {
    int64_t tokens, chosen, experts, inputs, size, half, activation;
    float alpha, limit;
} ExpertsShape;

typedef struct {
    const ExpertsShape *shape;
    const char *x;           // rows as the tile reads them, [tokens][inputs]
    const char *gate_up, *down;
    const float *gate_up_bias, *down_bias;  // [experts][units][64], or null
    const float *weight;     // [tokens][chosen]
    const int32_t *expert;
    char *out;
    int64_t *start;          // [experts + 1] into sorted
    int64_t *sorted;         // pairs
    char *hidden;            // [pairs][size], as the tile reads it, in sorted order
    char *answer;            // [pairs][inputs], by pair, in the model's dtype
} Call;

INLINE vector silu(vector gate, vector up, const int half) {
    return rounded_lanes(gate / (1.0f + exponential_lanes(-gate)), half) * up;
}

INLINE vector clamped(vector gate, vector up, float alpha, float limit) {
    gate = limited(gate, -INFINITY, limit);
    up = limited(up, -limit, limit);
    return (up + 1.0f) * (gate / (1.0f + exponential_lanes(-alpha * gate)));
}

// A block of a hidden row, as the next product reads it.
INLINE void activate_block(const ExpertsShape *shape, const float *gate, const float *up, char *row,
                           int64_t columns, const int mode) {
    char block[BLOCK * 4];
    const int half = mode != PLAIN;
    for (int c = 0; c < BLOCK; c += LANES) {
        vector g = rounded_lanes(vector_load(gate + c), half);
        vector u = rounded_lanes(vector_load(up + c), half);
        vector hidden = shape->activation == SILU ? silu(g, u, half)
                                                  : clamped(g, u, shape->alpha, shape->limit);
        if (mode == PAIRS)
            store_lanes(block, c, hidden, 1);
        else
            vector_store(block + c * 4, rounded_lanes(hidden, half));
    }
    memcpy(row, block, row_bytes(columns < BLOCK ? columns : BLOCK, mode));
}

INLINE void add_bias(float *sums, int64_t rows, const float *bias) {
    if (bias)
        for (int64_t r = 0; r < rows; r++)
            for (int c = 0; c < UNIT; c++) sums[r * UNIT + c] += bias[c];
}

// Blocks of a unit: gate, up, gate, up of 16 hidden columns each.
INLINE void hidden_unit(const Call *call, int64_t expert, int64_t unit, const int mode) {
    const ExpertsShape *shape = call->shape;
    int64_t units = units_of(2 * ((shape->size + 31) / 32 * 32)), at = expert * units + unit;
    const char *weight = call->gate_up + at * unit_bytes(shape->inputs, mode);
    float sums[ROWS * UNIT];
    for (int64_t i = call->start[expert]; i < call->start[expert + 1]; i += ROWS) {
        int64_t left = call->start[expert + 1] - i, rows = left < ROWS ? left : ROWS;
        const char *row[ROWS];
        for (int64_t r = 0; r < rows; r++)
            row[r] = call->x + row_bytes(call->sorted[i + r] / shape->chosen * shape->inputs, mode);
        unit_product(row, rows, weight, shape->inputs, sums, mode);
        add_bias(sums, rows, call->gate_up_bias ? call->gate_up_bias + at * UNIT : 0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t pair = 0; pair < UNIT / BLOCK / 2; pair++) {
                int64_t column = (unit * UNIT / 2) + pair * BLOCK;
                char *hidden = call->hidden + row_bytes((i + r) * shape->size + column, mode);
                const float *gate = sums + r * UNIT + pair * 2 * BLOCK;
                if (column < shape->size)
                    activate_block(shape, gate, gate + BLOCK, hidden, shape->size - column, mode);
            }
    }
}

INLINE void answer_unit(const Call *call, int64_t expert, int64_t unit, const int mode) {
    const ExpertsShape *shape = call->shape;
    int64_t units = units_of(shape->inputs), at = expert * units + unit, first = unit * UNIT;
    const char *weight = call->down + at * unit_bytes(shape->size, mode);
    int64_t columns = shape->inputs - first < UNIT ? shape->inputs - first : UNIT;
    float sums[ROWS * UNIT];
    for (int64_t i = call->start[expert]; i < call->start[expert + 1]; i += ROWS) {
        int64_t left = call->start[expert + 1] - i, rows = left < ROWS ? left : ROWS;
        const char *row[ROWS];
        for (int64_t r = 0; r < rows; r++)
            row[r] = call->hidden + row_bytes((i + r) * shape->size, mode);
        unit_product(row, rows, weight, shape->size, sums, mode);
        add_bias(sums, rows, call->down_bias ? call->down_bias + at * UNIT : 0);
        for (int64_t r = 0; r < rows; r++) {
            int64_t to = call->sorted[i + r] * shape->inputs + first;
            for (int64_t c = 0; c < columns; c++)
                store(call->answer, to + c, sums[r * UNIT + c], mode != PLAIN);
        }
    }
}

INLINE void sum_token(const Call *call, int64_t token, const int mode) {
    const ExpertsShape *shape = call->shape;
    int64_t inputs = shape->inputs, first = token * shape->chosen;
    const int half = mode != PLAIN;
    for (int64_t column = 0; column < inputs; column += UNIT) {
        int64_t columns = inputs - column < UNIT ? inputs - column : UNIT;
        float sums[UNIT] = {0};
        for (int64_t k = 0; k < shape->chosen; k++) {
            if (call->expert[first + k] < 0) continue;
            float weight = call->weight[first + k];
            int64_t from = (first + k) * inputs + column;
            for (int64_t c = 0; c < columns; c++)
                sums[c] += weight * load(call->answer, from + c, half);
        }
        for (int64_t c = 0; c < columns; c++)
            store(call->out, token * inputs + column + c, sums[c], half);
    }
}

INLINE void run(const Call *call, int64_t threads, const int mode) {
    const ExpertsShape *shape = call->shape;
    int64_t hidden_units = (shape->size + 31) / 32, answer_units = units_of(shape->inputs);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < shape->experts * hidden_units; i++)
            hidden_unit(call, i / hidden_units, i % hidden_units, mode);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < shape->experts * answer_units; i++)
            answer_unit(call, i / answer_units, i % answer_units, mode);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < shape->tokens; t++) sum_token(call, t, mode);
    }
}

// Counting sort; 0 where an id is no expert. -1: an expert of another shard, not computed here.
static int sort_pairs(const Call *call, int64_t *load) {
    int64_t experts = call->shape->experts, pairs = call->shape->tokens * call->shape->chosen;
    int64_t *start = call->start;
    memset(start, 0, (experts + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < pairs; i++) {
        if (call->expert[i] < -1 || call->expert[i] >= experts) return 0;
        if (call->expert[i] >= 0) start[call->expert[i] + 1]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        if (load) load[e] += start[e + 1];
        start[e + 1] += start[e];
    }
    for (int64_t i = 0; i < pairs; i++)
        if (call->expert[i] >= 0) call->sorted[start[call->expert[i]]++] = i;
    for (int64_t e = experts; e > 0; e--) start[e] = start[e - 1];
    start[0] = 0;
    return 1;
}

int64_t penstock_experts(const void *x, const int32_t *expert, const float *weight,
                         const void *gate_up, const void *down, const float *gate_up_bias,
                         const float *down_bias, void *out, int64_t *load,
                         const ExpertsShape *shape, int64_t threads) {
    const int mode = shape->half ? HALF_MODE : PLAIN;
    int64_t pairs = shape->tokens * shape->chosen, elements = shape->tokens * shape->inputs;
    int64_t index = (shape->experts + 1 + pairs) * sizeof(int64_t);
    int64_t wide = mode == WIDENED ? elements * 4 : 0;
    int64_t hidden = row_bytes(pairs * shape->size, mode);
    int64_t answer = pairs * shape->inputs * (shape->half ? 2 : 4);
    char *scratch = malloc(index + wide + hidden + answer);
    if (!scratch) return REFUSED_MEMORY;
    int64_t *start = (int64_t *)scratch;
    char *rows = scratch + index;
    Call call = {shape, x, gate_up, down, gate_up_bias, down_bias, weight, expert, out, start,
                 start + shape->experts + 1, rows + wide, rows + wide + hidden};
    int64_t status = sort_pairs(&call, load) ? 0 : REFUSED_EXPERT;
    if (!status) {
        if (mode == WIDENED) {
#pragma omp parallel for num_threads(elements < 65536 ? 1 : threads) schedule(static)
            for (int64_t i = 0; i < elements; i++)
                ((float *)rows)[i] = from_bf16(((const bf16 *)x)[i]);
            call.x = rows;
        }
        if (mode == PLAIN)
            run(&call, threads, PLAIN);
        else
            run(&call, threads, HALF_MODE);
    }
    free(scratch);
    return status;
}
