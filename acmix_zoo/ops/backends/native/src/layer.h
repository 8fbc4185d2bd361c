// What the caller describes, and what follows from it.
#pragma once

#include "vectors.h"

// Runs `task(shared)` on up to `threads` threads: the GOMP_parallel of PyTorch's own OpenMP library.
typedef void (*Parallel)(void (*task)(void*), void* shared, unsigned threads, unsigned flags);

// The fields, in this order, are repeated in library.py. All tensors are float32 and contiguous in the order shown.
struct Layer {
  int64_t batch, height, width, inputs;              // of x
  int64_t heads, head_width;                         // outputs = heads · head_width
  int64_t kernel, stride, dilation, conv_kernel;
  int64_t threads;
  Parallel parallel;                                 // or null: one thread
  const float* x;                                    // (batch, height, width, inputs)
  const float* weight;                               // (3 · outputs, inputs), rows ordered (head_width, {q, k, v}, heads)
  const float* bias;                                 // (3 · outputs), or null
  const float* positions;                            // (height, width, head_width), or null: no attention
  const float* kernels;                              // (outputs, conv_kernel², 3 · heads), or null: no convolution
  const float* alpha;                                // (outputs), or null: 1
  const float* offset;                               // (outputs), or null: 0
  float* out;                                        // (batch, rows, cols, outputs)
  float* projections;                                // (batch, height, width, pixel of the layout), or null: see below
  // Only for the backward pass. It adds to the last three gradients and overwrites the others.
  int64_t alpha_is_scalar;                           // all values of alpha are the same, so it can have a gradient
  const float* grad;                                 // of out
  float* d_x;                                        // like x, or null: not wanted
  float* d_weight;                                   // like weight, or null: not wanted
  float* d_bias;                                     // like bias, or null: not wanted
  float* d_positions;                                // (height, width, head_width), or null: not wanted
  float* d_kernels;                                  // (outputs, conv_kernel², 3 · heads), or null: not wanted
  float* d_alpha;                                    // (1), or null: not wanted
};

// `projections` is where the forward pass leaves them, if they are to be kept, and where the backward pass finds them. If
// it is null, the forward pass only has a few rows at a time, and the backward pass projects again.

namespace {

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A position of a line of `size` that reflection continues: … 2 1 0 1 2 … size−2 size−1 size−2 …
INLINE int64_t reflect(int64_t p, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * size - 2;
  p %= period;
  if (p < 0) p += period;
  return p < size ? p : period - p;
}

// The layout of the projections. Each pixel has four planes. Heads are cut into groups of four, the last one filled up
// with zeros, and channels filled up to a multiple of four:
//
//     pixel   | q                                   | k           | v           | k − position | 16 unused |
//     plane   | group 0        | group 1        | … |
//     group   | c0: h0 h1 h2 h3 | c1: h0 h1 h2 h3 | …
struct Layout {
  int64_t groups;   // of four heads
  int64_t channels; // of a head, filled up
  int64_t group;    // floats of a group
  int64_t plane;    // floats of a plane
  int64_t pixel;    // floats of a pixel
  int64_t columns;  // outputs of the matrix product: three planes, filled up to whole panels
};

INLINE Layout layout_of(const Layer& l, int64_t panel) {
  Layout a;
  a.groups = (l.heads + HEADS - 1) / HEADS;
  a.channels = round_up(l.head_width, 4);
  a.group = a.channels * HEADS;
  a.plane = a.groups * a.group;
  // One cache line more: pixels that lie a multiple of 4 KiB apart would evict each other from the level-1 cache.
  a.pixel = 4 * a.plane + 16;
  a.columns = round_up(3 * a.plane, panel);  // at most 4 planes: the fourth is written afterwards
  return a;
}

}  // namespace
