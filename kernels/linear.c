// A linear layer with bf16 weights, for processors on which the library has none of its own; the
// formula stands in linear.py, the layout of the weight in grouped.h.
#include "grouped.h"

enum { STRETCH = 16 };  // groups of rows that meet a unit's weights while these are near
// Rows of a group, at most. With six, and weights widened on the way, one sum of sixteen registers
// would wait in memory, which costs a third of the speed.
enum { MOST = HALF_MODE == PAIRS ? ROWS : 4 };

typedef struct {
    int64_t rows, inputs, outputs;
} LinearShape;

typedef struct {
    const bf16 *x;
    float *wide;  // x in fp32: [groups][inputs][width], where rows are read widened
    const char *weight;
    const float *bias;  // [units][64], or null
    bf16 *out;
    const LinearShape *shape;
    int64_t groups, width;  // rows are cut into groups of nearly one size
} Call;

INLINE int64_t first_row(const Call *call, int64_t group) {
    return group * call->shape->rows / call->groups;
}

// The rows of a group side by side, so that one stream of memory serves them all.
INLINE void widen(const Call *call, int64_t group) {
    int64_t inputs = call->shape->inputs, width = call->width;
    float *out = call->wide + group * inputs * width;
    for (int64_t r = first_row(call, group), at = 0; r < first_row(call, group + 1); r++, at++)
        for (int64_t i = 0; i < inputs; i++) out[i * width + at] = from_bf16(call->x[r * inputs + i]);
}

INLINE void store_rows(const Call *call, int64_t first, int64_t rows, int64_t unit, float *sums) {
    int64_t outputs = call->shape->outputs, left = outputs - unit * UNIT;
    int64_t columns = left < UNIT ? left : UNIT;
    for (int64_t r = 0; r < rows; r++, sums += UNIT) {
        bf16 *out = call->out + (first + r) * outputs + unit * UNIT;
        if (call->bias)
            for (int64_t c = 0; c < UNIT; c++) sums[c] += call->bias[unit * UNIT + c];
        for (int64_t c = 0; c < columns; c++) out[c] = to_bf16(sums[c]);
    }
}

INLINE void linear_unit(const Call *call, int64_t unit, int64_t group) {
    int64_t inputs = call->shape->inputs, stride = HALF_MODE == WIDENED ? call->width * 4 : 4;
    const char *weight = call->weight + unit * unit_bytes(inputs, HALF_MODE);
    int64_t first = first_row(call, group), rows = first_row(call, group + 1) - first;
    float sums[ROWS * UNIT];
    const char *row[ROWS];
    for (int64_t r = 0; r < rows; r++)
        row[r] = HALF_MODE == WIDENED
                     ? (const char *)(call->wide + group * inputs * call->width + r)
                     : (const char *)(call->x + (first + r) * inputs);
    strided_product(row, stride, rows, weight, inputs, sums, HALF_MODE);
    store_rows(call, first, rows, unit, sums);
}

// x is bf16 [rows][inputs] without gaps; wide has room for ROWS rows more than x, in fp32.
int64_t penstock_linear(const bf16 *x, const void *weight, const float *bias, bf16 *out,
                        float *wide, const LinearShape *shape, int64_t threads) {
    int64_t groups = (shape->rows + MOST - 1) / MOST;
    if (!groups) return 0;
    int64_t units = units_of(shape->outputs), stretches = (groups + STRETCH - 1) / STRETCH;
    Call call = {x, wide, weight, bias, out, shape, groups, (shape->rows + groups - 1) / groups};
    if (shape->rows * shape->inputs * shape->outputs < 1 << 17) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        if (HALF_MODE == WIDENED) {
#pragma omp for schedule(static)
            for (int64_t group = 0; group < groups; group++) widen(&call, group);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units * stretches; i++) {
            int64_t first = i % stretches * STRETCH, last = first + STRETCH;
            for (int64_t group = first; group < last && group < groups; group++)
                linear_unit(&call, i / stretches, group);
        }
    }
    return 0;
}
