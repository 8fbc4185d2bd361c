// Attention of a block of QUERIES neighbouring queries, four heads at a time.
//
// For each key of the window, the products q · key of all queries and heads of the block fill one vector:
//
//     lane    0    1    2    3  |  4  …  7  |  …
//     query   0    0    0    0  |  1        |  …
//     head    0    1    2    3  |  0  …  3  |  …
//
// so the softmax over the window runs on whole vectors, one for each key. Keys and values are read where the projections
// lie: neither gathered nor padded. Reflection is a table of column offsets (`columns`) and one pointer for each row.
#pragma once

#include "threads.h"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;

// The window of a block of queries. Query i sees, in row r, the pixels rows[r] + columns[i · stride + dx · dilation].
struct Window {
  const float* const* rows;   // kernel pointers to the first pixel of a row
  const int64_t* columns;     // offsets of pixels, counted from the first column that query 0 sees
  int64_t kernel, stride, dilation;
};

// The dot products of each query with N keys of one row, the first at window column `dx`. K and S are the window's side
// and stride where they are compiled in (0: read from the window), with dilation 1: a key is then loaded once for all queries that see it.
template <int N, int K, int S>
INLINE void dot_products(const float* const* q, const float* row, const Window& w, int64_t dx, int64_t plane,
                         int64_t channels, Vec* out) {
  Vec sum[N][QUERIES];
#pragma GCC unroll 8
  for (int j = 0; j < N; j++)
#pragma GCC unroll 4
    for (int i = 0; i < QUERIES; i++) sum[j][i] = Vec{};
  if constexpr (K > 0) {
    constexpr int SEEN = N + (QUERIES - 1) * S;
    const float* key[SEEN];
#pragma GCC unroll 16
    for (int x = 0; x < SEEN; x++) key[x] = row + w.columns[dx + x] + plane;
    for (int64_t c = 0; c < channels; c += LANES) {
      Vec query[QUERIES];
#pragma GCC unroll 4
      for (int i = 0; i < QUERIES; i++) query[i] = load(q[i] + c);
#pragma GCC unroll 16
      for (int x = 0; x < SEEN; x++) {
        const Vec k = load_once(key[x] + c);
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) {
          const int j = x - i * S;
          if (j >= 0 && j < N) sum[j][i] = query[i] * k + sum[j][i];
        }
      }
    }
  } else {
    const float* key[N][QUERIES];
    for (int j = 0; j < N; j++)
      for (int i = 0; i < QUERIES; i++) key[j][i] = row + w.columns[i * w.stride + (dx + j) * w.dilation] + plane;
    for (int64_t c = 0; c < channels; c += LANES)
#pragma GCC unroll 4
      for (int i = 0; i < QUERIES; i++) {
        const Vec query = load(q[i] + c);
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) sum[j][i] = query * load(key[j][i] + c) + sum[j][i];
      }
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) out[j] = sum_channels(sum[j]);
}

// The dot products with the kernel² pixels of the window, in the plane at offset `plane`: out[row · kernel + column].
template <int K, int S>
INLINE void window_products(const float* const* q, const Window& w, int64_t plane, int64_t channels, Vec* out) {
  const int64_t kernel = K ? K : w.kernel;
  for (int64_t r = 0; r < kernel; r++, out += kernel) {
    int64_t dx = 0;
    for (; dx + 4 <= kernel; dx += 4) dot_products<4, K, S>(q, w.rows[r], w, dx, plane, channels, out + dx);
    switch (kernel - dx) {
      case 3: dot_products<3, K, S>(q, w.rows[r], w, dx, plane, channels, out + dx); break;
      case 2: dot_products<2, K, S>(q, w.rows[r], w, dx, plane, channels, out + dx); break;
      case 1: dot_products<1, K, S>(q, w.rows[r], w, dx, plane, channels, out + dx); break;
    }
  }
}

// exp(scale · (logit − the largest)), not yet divided by their sum, in place; returns the sum. `scale` holds log2(e).
INLINE Vec exponentials(Vec* logits, int64_t n, float scale) {
  Vec top = logits[0];
  for (int64_t j = 1; j < n; j++) top = larger(logits[j], top);
  const Vec factor = splat(scale), shift = top * factor;
  Vec sum = Vec{};
#pragma GCC unroll 4
  for (int64_t j = 0; j < n; j++) {
    const Vec e = exp2_nonpositive(logits[j] * factor - shift);
    logits[j] = e;
    sum = sum + e;
  }
  return sum;
}

// The sum over the window of weight · pixel, for N vectors of the plane at offset `plane`.
template <int N, int K, int S>
INLINE void weighted_sum(const Vec* weights, const Window& w, int64_t plane, Vec (&sum)[QUERIES][N]) {
#pragma GCC unroll 4
  for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[i][n] = Vec{};
  const float* p = (const float*)weights;
  if constexpr (K > 0) {
    for (int r = 0; r < K; r++, p += K * LANES) {
      const float* row = w.rows[r] + plane;
#pragma GCC unroll 16
      for (int x = 0; x < K + (QUERIES - 1) * S; x++) {
        const float* value = row + w.columns[x];
        Vec v[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) v[n] = load_once(value + n * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) {
          const int dx = x - i * S;
          if (dx >= 0 && dx < K) {
            const Vec weight = repeat4(p + dx * LANES + i * HEADS);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[i][n] = weight * v[n] + sum[i][n];
          }
        }
      }
    }
  } else {
    for (int64_t r = 0; r < w.kernel; r++) {
      const float* row = w.rows[r] + plane;
      for (int64_t dx = 0; dx < w.kernel; dx++, p += LANES)
#pragma GCC unroll 4
        for (int i = 0; i < QUERIES; i++) {
          const float* value = row + w.columns[i * w.stride + dx * w.dilation];
          const Vec weight = repeat4(p + i * HEADS);
#pragma GCC unroll 4
          for (int n = 0; n < N; n++) sum[i][n] = weight * load(value + n * LANES) + sum[i][n];
        }
    }
  }
}

// One group's output for one query, from channel c on: N vectors → out[head · head_width + channel].
template <int N>
INLINE void store_heads(const Vec* sum, Vec factor, int64_t c, int64_t heads, int64_t head_width, float* out) {
#pragma GCC unroll 4
  for (int n = 0; n < N; n += QUAD, c += 4) {
    Vec quad[QUAD];
    Vec4 head[HEADS];
#pragma GCC unroll 4
    for (int i = 0; i < QUAD; i++) quad[i] = sum[n + i] * factor;
    split_quad(quad, head);
    if (heads >= HEADS && c + 4 <= head_width) {
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; h++) store4(out + h * head_width + c, head[h]);
    } else {
      for (int64_t h = 0; h < min(heads, HEADS); h++)
        for (int64_t i = 0; i < min(4, head_width - c); i++) out[h * head_width + c + i] = head[h][i];
    }
  }
}

// A block of queries, one group of four heads. `q`: their projections of this group; `out[i]`: where query i's outputs of
// this group start; `heads`: how many heads there are from this group on; `logits`: room for kernel² vectors.
template <int K, int S>
void attend(const float* const* q, const Window& w, const Layout& s, int64_t group, int64_t heads,
            int64_t head_width, float scale, Vec* logits, float* const* out, int64_t queries) {
  const int64_t keys = 3 * s.plane + group * s.group, values = 2 * s.plane + group * s.group, kernel = K ? K : w.kernel;
  window_products<K, S>(q, w, keys, s.group, logits);
  const Vec sum = exponentials(logits, kernel * kernel, scale);
  alignas(64) float inverse[LANES];
  *(Vec*)inverse = splat(1.f) / sum;
  int64_t c = 0;  // floats of the group
  for (; c + 4 * LANES <= s.group; c += 4 * LANES) {
    Vec total[QUERIES][4];
    weighted_sum<4, K, S>(logits, w, values + c, total);
#pragma GCC unroll 4
    for (int i = 0; i < QUERIES; i++)
      if (i < queries) store_heads<4>(total[i], repeat4(inverse + i * HEADS), c / HEADS, heads, head_width, out[i]);
  }
  for (; c < s.group; c += QUAD * LANES) {
    Vec total[QUERIES][QUAD];
    weighted_sum<QUAD, K, S>(logits, w, values + c, total);
#pragma GCC unroll 4
    for (int i = 0; i < QUERIES; i++)
      if (i < queries) store_heads<QUAD>(total[i], repeat4(inverse + i * HEADS), c / HEADS, heads, head_width, out[i]);
  }
}

}  // namespace
