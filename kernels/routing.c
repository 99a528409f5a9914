// Choice of experts; the formulas stand in routing.py.
#include "elementary.h"

typedef struct {
    int64_t tokens, experts, chosen, groups, chosen_groups, sigmoid, normalised;
    float scale;
} RoutingShape;

// The place of the largest of those not yet taken, the lowest among equals; taken[place] is set.
INLINE int64_t take_largest(const float *values, char *taken, int64_t count) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++)
        if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
    taken[best] = 1;
    return best;
}

// Experts of all groups but the best are marked as taken.
static void close_groups(const RoutingShape *shape, const float *ranked, char *taken, float *sums,
                         char *open) {
    int64_t size = shape->experts / shape->groups;
    memset(open, 0, shape->groups);
    for (int64_t g = 0; g < shape->groups; g++) {
        const float *group = ranked + g * size;
        float first = group[0] > group[1] ? group[0] : group[1];
        float second = group[0] > group[1] ? group[1] : group[0];
        for (int64_t i = 2; i < size; i++) {
            if (group[i] > first) {
                second = first;
                first = group[i];
            } else if (group[i] > second)
                second = group[i];
        }
        sums[g] = first + second;
    }
    for (int64_t i = 0; i < shape->chosen_groups; i++) take_largest(sums, open, shape->groups);
    for (int64_t g = 0; g < shape->groups; g++) memset(taken + g * size, !open[g], size);
}

// score and ranked are what weights are made of and what the order goes by.
static void route_row(const RoutingShape *shape, const float *logits, const float *correction,
                      int32_t *expert, float *weight, float *score, float *ranked, char *taken) {
    int64_t experts = shape->experts;
    float peak = logits[0], all = 0.0f, sum = 0.0f;
    for (int64_t i = 1; i < experts; i++) peak = logits[i] > peak ? logits[i] : peak;
    for (int64_t i = 0; i < experts; i++) {
        if (shape->sigmoid) {
            score[i] = 1.0f / (1.0f + exponential(-logits[i]));
            ranked[i] = correction ? score[i] + correction[i] : score[i];
        } else {
            score[i] = exponential(logits[i] - peak);
            ranked[i] = logits[i];
            all += score[i];
        }
    }
    memset(taken, 0, experts);
    if (shape->chosen_groups < shape->groups)
        close_groups(shape, ranked, taken, ranked + experts, taken + experts);
    for (int64_t k = 0; k < shape->chosen; k++) {
        expert[k] = (int32_t)take_largest(ranked, taken, experts);
        weight[k] = score[expert[k]];
        sum += weight[k];
    }
    float divisor = shape->normalised ? sum + (shape->sigmoid ? 1e-20f : 0.0f)
                                      : (shape->sigmoid ? 1.0f : all);
    for (int64_t k = 0; k < shape->chosen; k++) weight[k] = weight[k] / divisor * shape->scale;
}

int64_t penstock_route(const float *logits, const float *correction, int32_t *expert, float *weight,
                       const RoutingShape *shape, int64_t threads) {
    int64_t experts = shape->experts, room = experts + shape->groups, status = 0;
    if (shape->tokens * experts < 16384) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = malloc((experts + room) * sizeof(float) + room);
        if (!scratch) {
#pragma omp atomic write
            status = REFUSED_MEMORY;
        }
#pragma omp barrier
        if (!status) {
            float *ranked = scratch + experts;
            char *taken = (char *)(ranked + room);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < shape->tokens; t++)
                route_row(shape, logits + t * experts, correction, expert + t * shape->chosen,
                          weight + t * shape->chosen, scratch, ranked, taken);
        }
        free(scratch);
    }
    return status;
}
