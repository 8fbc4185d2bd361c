// The matrix products of the projections, forward and backward.
//
// A block of ROWS rows × PANEL columns stays in registers, two vectors for each row. The right-hand matrix is packed
// into panels, so that a step along the depth reads two vectors in order:
//
//     packed   panel 0: k = 0: columns 0 … PANEL−1 | k = 1: columns 0 … PANEL−1 | …    panel 1: k = 0: …
//
// The left-hand matrix is read where it lies: its rows may be any distance apart.
#pragma once

#include "threads.h"

namespace {

constexpr int PANEL = 2 * LANES;
constexpr int ROWS = LANES == 16 ? 14 : 6;  // accumulators: 28 of 32 registers, or 12 of 16

// The left-hand element of row m at depth k is a[m · row + k · step].
// The right-hand vectors at depth k are b + k · next.
struct Operands {
  const float* a;
  int64_t row, step;
  const float* b;
  int64_t next, depth;
};

template <int M>
INLINE void multiply_block(const Operands& o, Vec (&sum)[M][2]) {
  // Five pointers and two offsets reach all rows, and so fit into the registers of addresses.
  const float *a0 = o.a, *a1 = o.a + 3 * o.row, *a2 = o.a + 6 * o.row, *a3 = o.a + 9 * o.row, *a4 = o.a + 12 * o.row;
  const float* b = o.b;
  for (int64_t k = 0; k < o.depth; k++) {
    const Vec b0 = load(b), b1 = load(b + LANES);
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) {
      const float* a = m < 3 ? a0 : m < 6 ? a1 : m < 9 ? a2 : m < 12 ? a3 : a4;
      const Vec x = splat(a[m % 3 * o.row]);
      sum[m][0] = x * b0 + sum[m][0];
      sum[m][1] = x * b1 + sum[m][1];
    }
    a0 += o.step, a1 += o.step, a2 += o.step, a3 += o.step, a4 += o.step;
    b += o.next;
  }
}

// out[m · apart + column] = start[column] + Σ_k left[m][k] · right[k][column], for M rows and the PANEL columns of a
// panel, or for the first `columns` of them.
template <int M>
static __attribute__((noinline)) void panel_block(const Operands& o, const float* start, float* out, int64_t apart,
                                                  int64_t columns) {
  Vec sum[M][2];
#pragma GCC unroll 14
  for (int m = 0; m < M; m++) {
    sum[m][0] = start ? load(start) : Vec{};
    sum[m][1] = start ? load(start + LANES) : Vec{};
  }
  multiply_block<M>(o, sum);
  if (columns >= PANEL) {
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) {
      store(out + m * apart, sum[m][0]);
      store(out + m * apart + LANES, sum[m][1]);
    }
    return;
  }
  for (int m = 0; m < M; m++)
    for (int64_t c = 0; c < columns; c++) out[m * apart + c] = sum[m][c / LANES][c % LANES];
}

// The same for up to ROWS rows.
template <int M = ROWS>
INLINE void panel_rows(int64_t rows, const Operands& o, const float* start, float* out, int64_t apart, int64_t columns) {
  if constexpr (M > 0) {
    if (rows >= M)
      panel_block<M>(o, start, out, apart, columns);
    else
      panel_rows<M - 1>(rows, o, start, out, apart, columns);
  }
}

// From this depth on a panel is used for all rows before the next one is read: all panels together no longer fit into
// the level-2 cache.
constexpr int64_t DEEP = 256;

// out (rows, columns) = a (rows, depth) · packed + start, for the panels from column `first` up to `last`. `columns`: of
// the result; the last panel may be wider.
void multiply(const float* a, int64_t row, int64_t rows, int64_t depth, const float* packed, const float* start,
              float* out, int64_t apart, int64_t first, int64_t last, int64_t columns) {
  auto block = [&](int64_t m, int64_t n) __attribute__((always_inline)) {
    const Operands o{a + m * row, row, 1, packed + n * depth, PANEL, depth};
    panel_rows(min(ROWS, rows - m), o, start ? start + n : nullptr, out + m * apart + n, apart, columns - n);
  };
  if (depth >= DEEP) {
    for (int64_t n = first; n < last; n += PANEL)
      for (int64_t m = 0; m < rows; m += ROWS) block(m, n);
  } else {
    for (int64_t m = 0; m < rows; m += ROWS)
      for (int64_t n = first; n < last; n += PANEL) block(m, n);
  }
}

// Where the weights of column n of the projections are among the caller's rows, ordered (head_width, {q, k, v}, heads);
// −1 for a column that only fills up the layout.
INLINE int64_t row_of_column(const Layer& l, const Layout& s, int64_t n) {
  const int64_t plane = n / s.plane, c = n % s.group / HEADS;
  const int64_t head = n % s.plane / s.group * HEADS + n % HEADS;
  return plane < 3 && head < l.heads && c < l.head_width ? (c * 3 + plane) * l.heads + head : -1;
}

// One panel of the weights (3 · outputs, K) → (K, PANEL), and its bias → (PANEL), in the layout's order. `zeros`: (K).
void pack_panel(const Layer& l, const Layout& s, int64_t panel, const float* zeros, float* packed, float* bias) {
  const int64_t depth = l.inputs;
  for (int64_t n = panel * PANEL; n < (panel + 1) * PANEL; n += HEADS) {
    const float* row[HEADS];
    for (int64_t h = 0; h < HEADS; h++) {
      const int64_t r = row_of_column(l, s, n + h);
      row[h] = r >= 0 ? l.weight + r * depth : zeros;
      bias[n % PANEL + h] = r >= 0 && l.bias ? l.bias[r] : 0;
    }
    float* to = packed + n % PANEL;
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
}

// The transposed weights: (3 · outputs, K) → panels (⌈K / PANEL⌉, columns of the layout, PANEL).
void pack_transposed(const Layer& l, const Layout& s, float* packed) {
  const int64_t depth = 3 * s.plane;
  share(l, (l.inputs + PANEL - 1) / PANEL, [&](int64_t panel) {
    const int64_t first = panel * PANEL, count = min(PANEL, l.inputs - first);
    float* to = packed + first * depth;
    for (int64_t n = 0; n < depth; n++, to += PANEL) {
      const int64_t r = row_of_column(l, s, n);
      const float* from = l.weight + max(r, 0) * l.inputs + first;
      if (r >= 0 && count == PANEL) {
        store(to, load(from));
        store(to + LANES, load(from + LANES));
      } else {
        for (int64_t c = 0; c < PANEL; c++) to[c] = r >= 0 && c < count ? from[c] : 0;
      }
    }
  });
}

}  // namespace
