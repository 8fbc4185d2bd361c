// The forward pass of the whole layer: project some rows, then attend and convolve what they complete.
//
// An image's projections live in a ring of rows. It holds what a pair of output rows sees, plus the rows of one matrix
// product, and stays in the level-2 cache:
//
//     row of the image   0 1 2 3 4 5 6 7 8 9 10 11 …
//     ring               [ seen by output rows 2, 3 ]          row r lies at r mod size
//                              next product: [10 11]
//
// With enough images each thread takes whole images. Otherwise each takes a band of rows, and projects the rows that it
// shares with its neighbours itself: that was faster than reading what another core has projected. Where these are too
// many, the threads share the rows of one image at a time, with a larger ring so that they seldom wait for each other.
#pragma once

#include "rows.h"

namespace {

constexpr int64_t OUT_ROWS = 2;                  // output rows of one task
constexpr int64_t SHARED_RING = (16 << 20) / 4;  // floats that the ring may take if threads share an image

// The columns of some pixels' projections from panel `first` up to `last`. The last panel may reach into the fourth plane,
// which is written afterwards.
INLINE void project(const Forward& f, const float* x, int64_t pixels, float* to, int64_t first, int64_t last) {
  multiply(x, f.l.inputs, pixels, f.l.inputs, f.weight, f.bias, to, f.s.pixel, first, last, f.s.columns);
}

template <int I>
INLINE void subtract_quad(const float* k, const float* four, float* keys) {
  if constexpr (I < QUAD) {
    store(keys + I * LANES, load(k + I * LANES) - spread_channels<I>(four));
    subtract_quad<I + 1>(k, four, keys);
  }
}

// The fourth plane: k − position, for all heads.
void subtract_positions(const Forward& f, const float* positions, int64_t pixels, float* to) {
  const Layout& s = f.s;
  const int64_t d = f.l.head_width;
  for (int64_t i = 0; i < pixels; i++, to += s.pixel, positions += d) {
    const float *k = to + s.plane, *p = positions;
    float* keys = to + 3 * s.plane;
    float last[4] = {0, 0, 0, 0};  // what is left of a width that is not a multiple of four
    for (int64_t c = 0; c < d % 4; c++) last[c] = p[d / 4 * 4 + c];
    for (int64_t g = 0; g < s.plane; g += s.group)
      for (int64_t c = 0; c < s.group; c += 4 * HEADS)
        subtract_quad<0>(k + g + c, c + 4 * HEADS <= 4 * d ? p + c / HEADS : last, keys + g + c);
  }
}

// Rows of a matrix product, so that it has enough pixels to be efficient.
INLINE int64_t rows_of_product(const Layer& l) {
  const int64_t pixels = l.inputs < DEEP ? 8 * ROWS : 14 * ROWS;
  return min(l.height, (pixels + l.width - 1) / l.width);
}

// Output rows `first` to `last` of an image by one thread, with a small ring.
void run_rows(const Forward& f, int64_t image, int64_t first, int64_t last) {
  const Layer& l = f.l;
  const int64_t batch_rows = rows_of_product(l), row_floats = l.width * f.s.pixel;
  const int64_t size = l.projections ? l.height : min(l.height, (OUT_ROWS - 1) * l.stride + 2 * f.reach + 1 + batch_rows);
  Buffer own(l.projections ? 0 : size * row_floats), pointers(floats_of<float*>(l.height));
  if (!own.data || !pointers.data) return;
  float* ring = l.projections ? l.projections + image * l.height * row_floats : own.data;
  const float** row = (const float**)pointers.data;
  for (int64_t y = 0; y < l.height; y++) row[y] = ring + y % size * row_floats;
  const float* x = l.x + image * l.height * l.width * l.inputs;
  float* out = l.out + image * f.rows * f.cols * f.outputs;
  const int64_t end = min(l.height, (last - 1) * l.stride + f.reach + 1);
  int64_t done = max(0, first * l.stride - f.reach);
  for (int64_t y = first; y < last; y += OUT_ROWS) {
    const int64_t count = min(OUT_ROWS, last - y);
    const int64_t need = min(end, (y + count - 1) * l.stride + f.reach + 1);
    while (done < need) {
      const int64_t more = min(min(batch_rows, end - done), size - done % size);  // up to the end of the ring
      float* to = ring + done % size * row_floats;
      const float* in = x + done * l.width * l.inputs;
      project(f, in, more * l.width, to, 0, f.s.columns);
      if (l.positions) subtract_positions(f, l.positions + done * l.width * l.head_width, more * l.width, to);
      done += more;
    }
    finish_rows(f, row, y, count, out);
  }
}

// The bands of output rows that an image is cut into, so that all threads get as many. 1: they would project too many rows
// twice, or all rows have to be saved once.
INLINE int64_t count_bands(const Forward& f) {
  const Layer& l = f.l;
  int64_t bands = 1;
  while (l.batch * bands % l.threads) bands++;
  const bool are_worth_it = (bands - 1) * 8 * f.reach <= l.height && bands * OUT_ROWS <= f.rows;
  return are_worth_it && !l.projections ? bands : 1;
}

// One image by all threads, with a large ring: project a slab of rows, wait, finish what it completes, wait.
// `packs`: a task of the product first packs the weights that it reads, which would otherwise lie in another core's cache.
void share_image(const Forward& f, int64_t image, bool packs) {
  const Layer& l = f.l;
  const int64_t row_floats = l.width * f.s.pixel;
  const int64_t seen = (OUT_ROWS - 1) * l.stride + 2 * f.reach + 1;
  const int64_t size = l.projections ? l.height : min(l.height, max(2 * seen, SHARED_RING / row_floats));
  Buffer own(l.projections ? 0 : size * row_floats), pointers(floats_of<float*>(l.height));
  if (!own.data || !pointers.data) return;
  float* ring = l.projections ? l.projections + image * l.height * row_floats : own.data;
  const float** row = (const float**)pointers.data;
  for (int64_t y = 0; y < l.height; y++) row[y] = ring + y % size * row_floats;
  const float* x = l.x + image * l.height * l.width * l.inputs;
  float* out = l.out + image * f.rows * f.cols * f.outputs;
  // A task of the product: some pixels of one row if they are many, else some panels of all of them.
  const bool by_rows = l.inputs < DEEP;
  int64_t done = 0, y = 0;
  while (y < f.rows) {
    // The rows from the first one that output row y sees may not be overwritten.
    const int64_t from = max(0, y * l.stride - f.reach);
    const int64_t until = size == l.height ? l.height : min(l.height, from + size);
    while (done < until) {
      const int64_t more = min(until - done, size - done % size);
      float* to = ring + done % size * row_floats;
      const float* in = x + done * l.width * l.inputs;
      const int64_t block = 8 * ROWS, pixels = more * l.width, panels = f.s.columns / PANEL;
      auto keys = [&](int64_t first, int64_t count) {
        if (l.positions)
          subtract_positions(f, l.positions + (done * l.width + first) * l.head_width, count, to + first * f.s.pixel);
      };
      if (by_rows) {
        share(l, (pixels + block - 1) / block, [&](int64_t task) {
          const int64_t first = task * block, count = min(block, pixels - first);
          project(f, in + first * l.inputs, count, to + first * f.s.pixel, 0, f.s.columns);
          keys(first, count);
        });
      } else {
        share(l, panels, [&](int64_t task) {
          const int64_t first = task * PANEL;
          if (packs && !done) pack_panel(l, f.s, task, f.zeros, f.weight + first * l.inputs, f.bias + first);
          project(f, in, pixels, to, first, first + PANEL);
        });
        share(l, (pixels + block - 1) / block, [&](int64_t task) { keys(task * block, min(block, pixels - task * block)); });
      }
      done += more;
    }
    // Output rows whose windows are complete.
    const int64_t end = done == l.height ? f.rows : (done - f.reach - 1) / l.stride + 1;
    share(l, (end - y + OUT_ROWS - 1) / OUT_ROWS, [&](int64_t task) {
      const int64_t first = y + task * OUT_ROWS;
      finish_rows(f, row, first, min(OUT_ROWS, end - first), out);
    });
    y = end;
  }
}

// Of Layer::kernels, (head_width, heads, taps, {q, k, v}, heads).
INLINE KernelStrides forward_strides(const Layer& l) {
  const int64_t inputs = 3 * l.heads, taps = l.conv_kernel * l.conv_kernel;
  return {l.heads * taps * inputs, taps * inputs, l.heads, 1, inputs};
}

// Packed weights, tables and everything else that the passes over the images read. Not usable unless `is_complete`.
class Prepared {
 public:
  Forward f;
  Prepared(const Layer& l, bool projects)
      : f(l), taps(l.kernels ? l.conv_kernel * l.conv_kernel : 0), columns(l.positions ? column_count(f) : 0),
        zeros(max(f.s.pixel, l.inputs)),
        floats(f.s.columns * (l.inputs + 1) + packed_kernels(f.s, taps) + zeros),
        integers(floats_of<int64_t>(columns + taps)) {
    if (!is_complete()) return;
    float* next = floats.data;
    auto take = [&](int64_t count) { float* p = next; next += count; return p; };
    float *weight = take(f.s.columns * l.inputs), *bias = take(f.s.columns), *zero = take(zeros);
    float* kernels = take(packed_kernels(f.s, taps));
    for (int64_t i = 0; i < zeros; i++) zero[i] = 0;
    if (projects)
      share(l, f.s.columns / PANEL, [&](int64_t i) {
        pack_panel(l, f.s, i, zero, weight + i * PANEL * l.inputs, bias + i * PANEL);
      });
    int64_t *column = (int64_t*)integers.data, *tap = column + columns;
    for (int64_t i = 0; i < columns; i++) column[i] = reflect(i - f.att_reach, l.width) * f.s.pixel;
    for (int64_t i = 0; i < taps; i++) tap[i] = i;
    if (taps) pack_kernels(l, f.s, l.kernels, forward_strides(l), 3, tap, taps, kernels);
    f.weight = weight, f.bias = bias, f.kernels = kernels, f.zeros = zero, f.columns = column;
  }
  bool is_complete() const { return floats.data && integers.data; }

 private:
  int64_t taps, columns, zeros;
  Buffer floats, integers;
};

void forward(const Layer& l) {
  const bool is_uneven = l.threads > 1 && l.parallel && l.batch % l.threads && l.batch < 4 * l.threads;
  const int64_t bands = is_uneven ? count_bands(Forward(l)) : 1;
  const bool shares = is_uneven && bands == 1, packs = shares && l.inputs >= DEEP;
  const Prepared prepared(l, !packs);
  if (!prepared.is_complete()) return;
  const Forward& f = prepared.f;
  if (shares) {
    for (int64_t image = 0; image < l.batch; image++) share_image(f, image, packs && image == 0);
    return;
  }
  const int64_t band = ((f.rows + bands - 1) / bands + OUT_ROWS - 1) / OUT_ROWS * OUT_ROWS;
  share(l, l.batch * bands, [&](int64_t task) {
    const int64_t first = min(task % bands * band, f.rows);
    run_rows(f, task / bands, first, min(first + band, f.rows));
  });
}

}  // namespace
