// One small product per head; the formula stands in heads.py.
#include "grouped.h"

typedef struct {
    int64_t tokens, heads, inputs, outputs, token_stride, head_stride, half;
} HeadsShape;

INLINE void head_unit(const char *x, const char *weight, void *out, const HeadsShape *shape,
                      int64_t head, int64_t unit, int64_t first, int64_t count, const int mode) {
    int64_t outputs = shape->outputs, units = units_of(outputs);
    const char *from = weight + (head * units + unit) * unit_bytes(shape->inputs, mode);
    int64_t columns = outputs - unit * UNIT < UNIT ? outputs - unit * UNIT : UNIT;
    float sums[ROWS * UNIT];
    for (int64_t t = first; t < first + count; t += ROWS) {
        int64_t rows = first + count - t < ROWS ? first + count - t : ROWS;
        const char *row[ROWS];
        for (int64_t r = 0; r < rows; r++)
            row[r] = x + row_bytes((t + r) * shape->token_stride + head * shape->head_stride, mode);
        unit_product(row, rows, from, shape->inputs, sums, mode);
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = ((t + r) * shape->heads + head) * outputs + unit * UNIT;
            for (int64_t c = 0; c < columns; c++)
                store(out, at + c, sums[r * UNIT + c], mode != PLAIN);
        }
    }
}

INLINE void run(const char *x, const char *weight, void *out, const HeadsShape *shape,
                int64_t threads, const int mode) {
    enum { STRETCH = 96 };  // rows that meet a unit's weights while these are near
    int64_t units = units_of(shape->outputs), stretches = (shape->tokens + STRETCH - 1) / STRETCH;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < shape->heads * units * stretches; i++) {
        int64_t first = i % stretches * STRETCH, left = shape->tokens - first;
        head_unit(x, weight, out, shape, i / stretches / units, i / stretches % units, first,
                  left < STRETCH ? left : STRETCH, mode);
    }
}

int64_t penstock_heads(const void *x, const void *weight, void *out, const HeadsShape *shape,
                       int64_t threads) {
    if (shape->tokens * shape->heads * shape->inputs * shape->outputs < 1 << 18) threads = 1;
    if (!shape->half) {
        run(x, weight, out, shape, threads, PLAIN);
        return 0;
    }
    if (HALF_MODE == PAIRS) {
        run(x, weight, out, shape, threads, HALF_MODE);
        return 0;
    }
    HeadsShape wide = *shape;
    wide.token_stride = shape->heads * shape->inputs;
    wide.head_stride = shape->inputs;
    float *rows = malloc(shape->tokens * wide.token_stride * sizeof(float));
    if (!rows) return REFUSED_MEMORY;
    for (int64_t t = 0; t < shape->tokens; t++)
        for (int64_t h = 0; h < shape->heads; h++) {
            const bf16 *from = (const bf16 *)x + t * shape->token_stride + h * shape->head_stride;
            float *to = rows + t * wide.token_stride + h * shape->inputs;
            for (int64_t i = 0; i < shape->inputs; i++) to[i] = from_bf16(from[i]);
        }
    run((const char *)rows, weight, out, &wide, threads, HALF_MODE);
    free(rows);
    return 0;
}
