// The gradient of a block of queries, one group of four heads at a time.
//
// With P the softmax's weights and g the gradient of the block's outputs, for each key j of the window:
//
//     dP_j  = g · v_j                                 like the logits, but with g and the values
//     dL_j  = P_j · (dP_j − Σ_i P_i · dP_i) / √d      the gradient of the logits (already times alpha)
//     dq   += Σ_j dL_j · key_j                        like the output, but with dL and the keys
//     dkey_j += dL_j · q      dv_j += P_j · g         scattered to where the keys lie, in the order of the queries
//
// An image is worked on by one thread, so the scattered sums always have the same order.
#pragma once

#include "attention.h"

namespace {

// pixel += Σ over the block's queries of weight · query, for all pixels of the window and N vectors of a plane.
template <int N, int K, int S>
INLINE void scatter(const Vec* weights, float* const* rows, const Window& w, int64_t plane, const float* const* query,
                    int64_t c) {
  Vec q[QUERIES][N];
#pragma GCC unroll 4
  for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) q[i][n] = load(query[i] + c + n * LANES);
  const float* p = (const float*)weights;
  if constexpr (K > 0) {
    for (int r = 0; r < K; r++, p += K * LANES) {
      float* row = rows[r] + plane + c;
#pragma GCC unroll 16
      for (int x = 0; x < K + (QUERIES - 1) * S; x++) {
        float* pixel = row + w.columns[x];
        Vec sum[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[n] = load(pixel + n * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) {
          const int dx = x - i * S;
          if (dx >= 0 && dx < K) {
            const Vec weight = repeat4(p + dx * LANES + i * HEADS);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[n] = weight * q[i][n] + sum[n];
          }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(pixel + n * LANES, sum[n]);
      }
    }
  } else {
    for (int64_t r = 0; r < w.kernel; r++) {
      float* row = rows[r] + plane + c;
      for (int64_t dx = 0; dx < w.kernel; dx++, p += LANES)
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) {
          float* pixel = row + w.columns[i * w.stride + dx * w.dilation];
          const Vec weight = repeat4(p + i * HEADS);
#pragma GCC unroll 4
          for (int n = 0; n < N; n++) store(pixel + n * LANES, weight * q[i][n] + load(pixel + n * LANES));
        }
    }
  }
}

// dq += Σ over the window of weight · key, then the scatters, for N vectors from float c of the group on.
template <int N, int K, int S>
INLINE void spread_gradients(const Vec* d_logits, const Vec* weights, const float* const* q, const float* const* g,
                             const Window& w, float* const* d_rows, float* const* d_q, int64_t keys, int64_t d_keys,
                             int64_t d_values, int64_t c) {
  Vec sum[QUERIES][N];
  weighted_sum<N, K, S>(d_logits, w, keys + c, sum);
#pragma GCC unroll 4
  for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(d_q[i] + c + n * LANES, load(d_q[i] + c + n * LANES) + sum[i][n]);
  scatter<N, K, S>(d_logits, d_rows, w, d_keys, q, c);
  scatter<N, K, S>(weights, d_rows, w, d_values, g, c);
}

// A block of queries, one group. `q`, `g`: their projections and the gradients of their outputs, both as (channels, four
// heads); `d_rows`, `d_q`: the gradients of the projections; `room`: for 2 · kernel² vectors; `alpha`: a factor of g that
// has not been applied. Returns what adds to the gradient of alpha, for each query and head.
template <int K, int S>
Vec attend_backward(const float* const* q, const float* const* g, const Window& w, float* const* d_rows,
                    float* const* d_q, const Layout& s, int64_t group, int64_t head_width, float alpha, Vec* room) {
  const int64_t kernel = K ? K : w.kernel, window = kernel * kernel, at = group * s.group;
  const int64_t keys = 3 * s.plane + at, values = 2 * s.plane + at, d_keys = s.plane + at;
  const float root = 1.f / __builtin_sqrtf((float)head_width);
  Vec *weights = room, *d_logits = room + window;
  window_products<K, S>(q, w, keys, s.group, weights);
  window_products<K, S>(g, w, values, s.group, d_logits);
  const Vec inverse = splat(1.f) / exponentials(weights, window, root * LOG2_E);
  Vec mean = Vec{};
  for (int64_t j = 0; j < window; j++) mean = weights[j] * d_logits[j] + mean;
  mean = mean * inverse;
  const Vec factor = splat(root * alpha), times_alpha = splat(alpha);
  for (int64_t j = 0; j < window; j++) {
    const Vec p = weights[j] * inverse;
    d_logits[j] = p * factor * (d_logits[j] - mean);
    weights[j] = p * times_alpha;
  }
  int64_t c = 0;
  for (; c + 4 * LANES <= s.group; c += 4 * LANES)
    spread_gradients<4, K, S>(d_logits, weights, q, g, w, d_rows, d_q, keys, d_keys, values, c);
  for (; c < s.group; c += QUAD * LANES)
    spread_gradients<QUAD, K, S>(d_logits, weights, q, g, w, d_rows, d_q, keys, d_keys, values, c);
  return mean;
}

}  // namespace
