// The matrix product of the projections: pixels (M, K) times weights (K, N) plus bias.
//
// A block of ROWS pixels × PANEL outputs stays in registers: two vectors for each pixel. Weights are packed into panels,
// so that a step along K reads two vectors in order:
//
//     packed   panel 0: k = 0: outputs 0 … PANEL−1 | k = 1: outputs 0 … PANEL−1 | …    panel 1: k = 0: …
#pragma once

#include "threads.h"

namespace {

constexpr int PANEL = 2 * LANES;
constexpr int ROWS = LANES == 16 ? 14 : 6;  // accumulators: 28 of 32 registers, or 12 of 16

// M pixels times one panel. K is fixed where it is common (0: `k_any`). A pixel's inputs are `stride` apart in memory, so
// that the block can be read in place (stride 1, pixels K apart) or from a transposed copy (stride ROWS, pixels 1 apart).
template <int M, int K>
static __attribute__((noinline)) void panel_block(const float* a, const float* packed, const float* bias, float* out,
                                                  int64_t pixel, int64_t k_any) {
  constexpr int64_t NEXT = K ? 1 : ROWS, APART = K ? K : 1;
  const int64_t depth = K ? K : k_any;
  Vec sum[M][2];
#pragma GCC unroll 14
  for (int m = 0; m < M; m++) {
    sum[m][0] = load(bias);
    sum[m][1] = load(bias + LANES);
  }
  for (int64_t k = 0; k < depth; k++, packed += PANEL) {
    const Vec w0 = load(packed), w1 = load(packed + LANES);
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) {
      const Vec x = splat(a[m * APART + k * NEXT]);
      sum[m][0] = x * w0 + sum[m][0];
      sum[m][1] = x * w1 + sum[m][1];
    }
  }
#pragma GCC unroll 14
  for (int m = 0; m < M; m++) {
    store(out + m * pixel, sum[m][0]);
    store(out + m * pixel + LANES, sum[m][1]);
  }
}

template <int K, int M = ROWS>
INLINE void panel_rows(int64_t m, const float* a, const float* packed, const float* bias, float* out, int64_t pixel,
                       int64_t k_any) {
  if constexpr (M > 0) {
    if (m >= M)
      panel_block<M, K>(a, packed, bias, out, pixel, k_any);
    else
      panel_rows<K, M - 1>(m, a, packed, bias, out, pixel, k_any);
  }
}

// From this depth on a panel's weights are reused for all pixels before the next panel's are read: all of them together
// no longer fit into the level-2 cache.
constexpr int64_t DEEP = 256;

template <int K>
void product(const float* a, int64_t m_all, const float* packed, const float* bias, float* out, const Layout& s,
             int64_t first, int64_t last, int64_t k_any) {
  const int64_t depth = K ? K : k_any;
  auto block = [&](int64_t m, int64_t n) __attribute__((always_inline)) {
    panel_rows<K>(min(ROWS, m_all - m), a + m * depth, packed + n * depth, bias + n, out + m * s.pixel + n, s.pixel, depth);
  };
  if (depth >= DEEP) {
    for (int64_t n = first; n < last; n += PANEL)
      for (int64_t m = 0; m < m_all; m += ROWS) block(m, n);
  } else {
    for (int64_t m = 0; m < m_all; m += ROWS)
      for (int64_t n = first; n < last; n += PANEL) block(m, n);
  }
}

// Blocks of ROWS pixels, transposed, so that one code serves every depth: (M, K) → (M / ROWS, K, ROWS).
void transpose_blocks(const float* a, int64_t m_all, int64_t depth, float* to) {
  for (int64_t m = 0; m < m_all; m += ROWS, to += ROWS * depth) {
    const int64_t rows = min(ROWS, m_all - m);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = 0; k < depth; k++) to[k * ROWS + i] = a[(m + i) * depth + k];
  }
}

// out[m, first … last−1] for m_all pixels; the outputs are s.pixel floats apart.
void multiply(const float* a, int64_t m_all, int64_t depth, const float* packed, const float* bias, float* out,
              const Layout& s, int64_t first, int64_t last) {
  switch (depth) {
    case 64: return product<64>(a, m_all, packed, bias, out, s, first, last, 0);
    case 128: return product<128>(a, m_all, packed, bias, out, s, first, last, 0);
    case 256: return product<256>(a, m_all, packed, bias, out, s, first, last, 0);
    case 512: return product<512>(a, m_all, packed, bias, out, s, first, last, 0);
    default: {
      Buffer transposed(round_up(m_all, ROWS) * depth);
      transpose_blocks(a, m_all, depth, transposed.data);
      product<0>(transposed.data, m_all, packed, bias, out, s, first, last, depth);
    }
  }
}

// Weights (3 · outputs, K) → panels (columns / PANEL, K, PANEL), bias → (columns), in the layout's order.
void pack_weights(const Layer& l, const Layout& s, float* packed, float* bias) {
  const int64_t depth = l.inputs, heads = l.heads, quads = s.columns / 4;
  Buffer zeros(depth);
  for (int64_t k = 0; k < depth; k++) zeros.data[k] = 0;
  const int64_t quads_a_task = PANEL / 4;
  share(l, quads / quads_a_task, [&](int64_t task) {
    for (int64_t quad = task * quads_a_task; quad < (task + 1) * quads_a_task; quad++) {
      // A quad of columns: four heads of one channel of one plane.
      const int64_t n = quad * 4, plane = n / s.plane, group = n % s.plane / s.group, c = n % s.group / HEADS;
      const float* row[HEADS];
      for (int64_t h = 0; h < HEADS; h++) {
        const int64_t head = group * HEADS + h;
        const bool real = plane < 3 && head < heads && c < l.head_width;
        const int64_t r = (c * 3 + plane) * heads + head;
        row[h] = real ? l.weight + r * depth : zeros.data;
        bias[n + h] = real && l.bias ? l.bias[r] : 0;
      }
      float* to = packed + n / PANEL * PANEL * depth + n % PANEL;
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4) {
        Vec4 a = load4(row[0] + k), b = load4(row[1] + k), d = load4(row[2] + k), e = load4(row[3] + k);
        transpose4(a, b, d, e);
        store4(to + k * PANEL, a);
        store4(to + (k + 1) * PANEL, b);
        store4(to + (k + 2) * PANEL, d);
        store4(to + (k + 3) * PANEL, e);
      }
      for (; k < depth; k++)
        for (int64_t h = 0; h < HEADS; h++) to[k * PANEL + h] = row[h][k];
    }
  });
}

}  // namespace
