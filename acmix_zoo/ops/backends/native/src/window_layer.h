// Swin's layer: its description by the caller, and the projections of an image in window order.
//
// A feature map is rolled and cut into windows. The projections are copied once into the order in which everything below
// reads them. The windows come one after the other, and each pixel holds q, k and v head by head, with the channels of a head
// next to each other:
//
//     caller   pixel:            c0: q h0 h1 … | k h0 h1 … | v h0 h1 …     c1: …
//     here     window: pixel:    q: h0: c0 c1 … | h1: … | k: … | v: … | ones | 16 unused
//
// The row of ones makes the bias of the mixing matrix one more of its columns.
#pragma once

#include "product.h"

// The fields, in this order, are repeated in library.py. All tensors are float32 and contiguous in the order shown.
struct WindowLayer {
  int64_t batch, height, width;                  // of the projections: whole windows
  int64_t heads, head_width;                     // channels = heads · head_width
  int64_t window_height, window_width, shift_rows, shift_columns;
  int64_t out_height, out_width;                 // the results are cropped to this size
  int64_t conv_kernel, conv_is_rolled;           // whether the convolution sees the rolled map or the cropped one
  int64_t heads_first;                           // projections are ordered ({q, k, v}, heads, head_width) instead
  int64_t threads;
  Parallel parallel;                             // or null: one thread
  const float* projections;                      // (batch, height, width, head_width, {q, k, v}, heads)
  const float* bias;                             // (heads, queries, keys of a window), or null: no attention
  const float* mask;                             // (4, queries, keys), or null: none. See `mask_of`
  const float* fc;                               // (conv_kernel², 3 · heads + 1), the bias last
  const float* kernels;                          // (channels, conv_kernel², conv_kernel²), or null: no convolution
  const float* offset;                           // (channels), added to the convolution, or null: 0
  float* attention;                              // (batch, out_height, out_width, heads, head_width)
  float* convolution;                            // (batch, out_height, out_width, head_width, heads)
  // Only for the backward pass, which overwrites these gradients.
  const float *d_attention, *d_convolution;      // like the results
  float* d_projections;                          // like projections
  float* d_bias;                                 // like bias, or null: not wanted
  float* d_fc;                                   // like fc, or null: neither this one nor the next is wanted
  float* d_kernels;                              // like kernels
};

namespace {

// A layer and the sizes that follow from it.
struct Windows {
  const WindowLayer& l;
  int64_t rows, columns;  // of windows
  int64_t length;         // positions of a window
  int64_t queries;        // the same, filled up to whole panels
  int64_t channels;       // of a head, filled up to whole panels
  int64_t vectors;        // of a head
  int64_t planes;         // q, k and v of all heads
  int64_t pixel;          // floats of a pixel
  int64_t taps;           // of the convolution, and the number of mixed maps
  int64_t outputs;

  explicit Windows(const WindowLayer& layer) : l(layer) {
    rows = l.height / l.window_height, columns = l.width / l.window_width;
    length = l.window_height * l.window_width, queries = round_up(length, PANEL);
    channels = round_up(l.head_width, PANEL), vectors = (l.head_width + LANES - 1) / LANES;
    planes = 3 * l.heads, pixel = (planes + 1) * channels + 16;
    taps = l.conv_kernel * l.conv_kernel, outputs = l.heads * l.head_width;
  }
  int64_t pixels() const { return l.height * l.width; }
  int64_t out_pixels() const { return l.out_height * l.out_width; }

  // The place in window order of a position of the rolled map.
  int64_t place(int64_t y, int64_t x) const {
    const int64_t window = y / l.window_height * columns + x / l.window_width;
    return window * length + y % l.window_height * l.window_width + x % l.window_width;
  }
  // Calls visit(i, y, x) for each position i of a window and the pixel of the caller's map that it shows.
  template <class Visit>
  void for_positions(int64_t window, const Visit& visit) const {
    const int64_t top = window / columns * l.window_height + l.shift_rows;
    const int64_t left = window % columns * l.window_width + l.shift_columns;
    int64_t i = 0;
    for (int64_t row = top; row < top + l.window_height; row++)
      for (int64_t column = left; column < left + l.window_width; column++)
        visit(i++, row < l.height ? row : row - l.height, column < l.width ? column : column - l.width);
  }
};

// to[c · to_row + r] = from[r · from_row + c]
INLINE void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* in = from + r * from_row;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Vec4 a = load4(in + c), b = load4(in + from_row + c), d = load4(in + 2 * from_row + c), e = load4(in + 3 * from_row + c);
      transpose4(a, b, d, e);
      float* out = to + c * to_row + r;
      store4(out, a);
      store4(out + to_row, b);
      store4(out + 2 * to_row, d);
      store4(out + 3 * to_row, e);
    }
    for (; c < columns; c++)
      store4(to + c * to_row + r, Vec4{in[c], in[from_row + c], in[2 * from_row + c], in[3 * from_row + c]});
  }
  for (; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) to[c * to_row + r] = from[r * from_row + c];
}

INLINE void copy(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  for (; i < count; i++) to[i] = from[i];
}

INLINE void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; i++) to[i] = value;
}

// The projections of one window of an image, in window order.
void turn_window(const Windows& w, const float* image, int64_t window, float* to) {
  w.for_positions(window, [&](int64_t, int64_t y, int64_t x) {
    const float* from = image + (y * w.l.width + x) * 3 * w.outputs;
    if (w.l.heads_first)
      for (int64_t p = 0; p < w.planes; p++) copy(from + p * w.l.head_width, w.l.head_width, to + p * w.channels);
    else
      transpose(from, w.planes, w.l.head_width, w.planes, to, w.channels);
    if (w.channels > w.l.head_width)
      for (int64_t p = 0; p < w.planes; p++)
        fill(to + p * w.channels + w.l.head_width, w.channels - w.l.head_width, 0);
    fill(to + w.planes * w.channels, w.channels, 1);
    to += w.pixel;
  });
}

// Their gradient, back to the caller's order.
void turn_window_back(const Windows& w, const float* from, int64_t window, float* image) {
  w.for_positions(window, [&](int64_t, int64_t y, int64_t x) {
    float* to = image + (y * w.l.width + x) * 3 * w.outputs;
    if (w.l.heads_first)
      for (int64_t p = 0; p < w.planes; p++) copy(from + p * w.channels, w.l.head_width, to + p * w.l.head_width);
    else
      transpose(from, w.channels, w.planes, w.l.head_width, to, w.planes);
    from += w.pixel;
  });
}

}  // namespace
