// Attention within a window, one head at a time, as dense matrix products over all of its positions.
//
// The logits are computed transposed, one row for each key, so that the softmax over the keys runs down the columns on
// whole vectors of queries:
//
//     logits (keys, queries) = K (keys, channels) · Qᵀ (channels, queries)        Qᵀ is packed into panels
//     out (queries, channels) = logitsᵀ · V (keys, channels)                      K, V are read in place
//
// With P the weights, R the logits' gradient and G the output's:
//
//     dPᵀ = V · Gᵀ      Rᵀ = Pᵀ · (dPᵀ − Σ_keys Pᵀ · dPᵀ)      dQ = R · K / √d      dK = Rᵀ · Q / √d      dV = Pᵀ · G
#pragma once

#include "attention.h"
#include "window_layer.h"

namespace {

// Bias and masks as the softmax reads them, (keys, queries) times log2(e).
struct Biases {
  const float* bias;   // (heads, keys, queries)
  const float* masks;  // (4, keys, queries), or null
};

void pack_bias(const Windows& w, const float* from, int64_t count, float* to) {
  share(w.l, count, [&](int64_t n) {
    const float* in = from + n * w.length * w.length;
    float* out = to + n * w.length * w.queries;
    for (int64_t key = 0; key < w.length; key++)
      for (int64_t query = 0; query < w.queries; query++)
        out[key * w.queries + query] = query < w.length ? in[query * w.length + key] * LOG2_E : 0;
  });
}

// The mask of a window, or null. The last window of a row (column) contains the seam of the rolled map, unless it is the
// only one: 0 is an inner window, 1 the last one of a row, 2 of a column, 3 of both.
INLINE const float* mask_of(const Windows& w, const Biases& biases, int64_t window) {
  const int64_t row = window / w.columns, column = window % w.columns;
  const int64_t kind = 2 * (row > 0 && row == w.rows - 1) + (column > 0 && column == w.columns - 1);
  return biases.masks && kind ? biases.masks + kind * w.length * w.queries : nullptr;
}

// rows (length, head_width) → panels (queries / PANEL, head_width, PANEL). The padding of the last panel is not written.
void pack_queries(const Windows& w, const float* rows, int64_t row, float* panels) {
  for (int64_t n = 0; n < w.length; n += PANEL)
    transpose(rows + n * row, row, min(PANEL, w.length - n), w.l.head_width, panels + n * w.l.head_width, PANEL);
}

// out (length, channels) = a (length, length) · b (length, channels): a[m · row + k · step], b[k · next + c].
void multiply_square(const Windows& w, const float* a, int64_t row, int64_t step, const float* b, int64_t next, float* out,
                     int64_t apart) {
  for (int64_t n = 0; n < w.channels; n += PANEL)
    for (int64_t m = 0; m < w.length; m += ROWS)
      panel_rows(min(ROWS, w.length - m), Operands{a + m * row, row, step, b + n, next, w.length}, nullptr,
                 out + m * apart + n, apart, PANEL);
}

// 2 to the power (scale · logit + bias − the largest), not yet divided by the sum over the keys, whose inverse it returns
// for each query.
void window_softmax(const Windows& w, float* logits, const float* bias, const float* mask, float* inverse) {
  const Vec scale = splat(LOG2_E / __builtin_sqrtf((float)w.l.head_width));
  for (int64_t q = 0; q < w.queries; q += LANES) {
    Vec top = splat(-__builtin_inff()), sum = Vec{};
    for (int64_t key = 0; key < w.length; key++) {
      const int64_t at = key * w.queries + q;
      Vec t = load(logits + at) * scale + load(bias + at);
      if (mask) t = t + load(mask + at);
      store(logits + at, t);
      top = larger(t, top);
    }
#pragma GCC unroll 4
    for (int64_t key = 0; key < w.length; key++) {
      const int64_t at = key * w.queries + q;
      const Vec e = exp2_nonpositive(load(logits + at) - top);
      store(logits + at, e);
      sum = sum + e;
    }
    store(inverse + q, splat(1.f) / sum);
  }
}

// Memory for a thread: parts of one buffer.
struct AttentionRoom {
  float *panels = nullptr, *logits = nullptr, *gradients = nullptr, *rows = nullptr, *inverse = nullptr;
  static int64_t floats(const Windows& w) {
    if (!w.l.bias) return 0;
    return w.queries * w.l.head_width + 2 * w.length * w.queries + w.length * w.channels + w.queries;
  }
  AttentionRoom(const Windows& w, float* memory) {
    if (!w.l.bias) return;
    panels = memory, logits = panels + w.queries * w.l.head_width, gradients = logits + w.length * w.queries;
    rows = gradients + w.length * w.queries, inverse = rows + w.length * w.channels;
    fill(panels, w.queries * w.l.head_width, 0);
    fill(rows, w.length * w.channels, 0);
  }
};

INLINE void window_logits(const Windows& w, const float* q, const float* k, const AttentionRoom& room) {
  pack_queries(w, q, w.pixel, room.panels);
  multiply(k, w.pixel, w.length, w.l.head_width, room.panels, nullptr, room.logits, w.queries, 0, w.queries, w.queries);
}

// Attention of all heads of a window: projections in window order → `out`, the caller's image.
void attend_window(const Windows& w, const Biases& biases, const float* projections, int64_t window,
                   const AttentionRoom& room, float* out) {
  const float* mask = mask_of(w, biases, window);
  const int64_t d = w.l.head_width;
  for (int64_t head = 0; head < w.l.heads; head++) {
    const float* q = projections + head * w.channels;
    window_logits(w, q, q + w.l.heads * w.channels, room);
    window_softmax(w, room.logits, biases.bias + head * w.length * w.queries, mask, room.inverse);
    multiply_square(w, room.logits, 1, w.queries, q + 2 * w.l.heads * w.channels, w.pixel, room.rows, w.channels);
    w.for_positions(window, [&](int64_t i, int64_t y, int64_t x) {
      if (y >= w.l.out_height || x >= w.l.out_width) return;
      float* to = out + (y * w.l.out_width + x) * w.outputs + head * d;
      const float *from = room.rows + i * w.channels, inverse = room.inverse[i];
      int64_t c = 0;
      for (; c + LANES <= d; c += LANES) store(to + c, load(from + c) * splat(inverse));
      for (; c < d; c++) to[c] = from[c] * inverse;
    });
  }
}

// Its gradient: overwrites d_projections of the window and adds to d_bias (heads, keys, queries).
void attend_window_backward(const Windows& w, const Biases& biases, const float* projections, int64_t window,
                            const AttentionRoom& room, const float* grad, float* d_projections, float* d_bias) {
  const float* mask = mask_of(w, biases, window);
  const int64_t d = w.l.head_width, k = w.l.heads * w.channels, v = 2 * k;
  const Vec scale = splat(1.f / __builtin_sqrtf((float)d));
  for (int64_t head = 0; head < w.l.heads; head++) {
    const float* q = projections + head * w.channels;
    float* d_q = d_projections + head * w.channels;
    window_logits(w, q, q + k, room);
    window_softmax(w, room.logits, biases.bias + head * w.length * w.queries, mask, room.inverse);
    w.for_positions(window, [&](int64_t i, int64_t y, int64_t x) {
      const bool inside = y < w.l.out_height && x < w.l.out_width;
      const float* from = grad + (y * w.l.out_width + x) * w.outputs + head * d;
      float* to = room.rows + i * w.channels;
      int64_t c = 0;
      for (; c + LANES <= d; c += LANES) store(to + c, inside ? load(from + c) : Vec{});
      for (; c < d; c++) to[c] = inside ? from[c] : 0;
    });
    pack_queries(w, room.rows, w.channels, room.panels);
    multiply(q + v, w.pixel, w.length, d, room.panels, nullptr, room.gradients, w.queries, 0, w.queries, w.queries);
    float* sum_of_bias = d_bias ? d_bias + head * w.length * w.queries : nullptr;
    for (int64_t i = 0; i < w.queries; i += LANES) {
      const Vec inverse = load(room.inverse + i);
      Vec mean = Vec{};
      for (int64_t key = 0; key < w.length; key++) {
        const int64_t at = key * w.queries + i;
        const Vec p = load(room.logits + at) * inverse;
        store(room.logits + at, p);
        mean = p * load(room.gradients + at) + mean;
      }
      for (int64_t key = 0; key < w.length; key++) {
        const int64_t at = key * w.queries + i;
        const Vec r = load(room.logits + at) * (load(room.gradients + at) - mean);
        if (sum_of_bias) store(sum_of_bias + at, load(sum_of_bias + at) + r);
        store(room.gradients + at, r * scale);
      }
    }
    multiply_square(w, room.gradients, 1, w.queries, q + k, w.pixel, d_q, w.pixel);
    multiply_square(w, room.gradients, w.queries, 1, q, w.pixel, d_q + k, w.pixel);
    multiply_square(w, room.logits, w.queries, 1, room.rows, w.channels, d_q + v, w.pixel);
  }
}

}  // namespace
