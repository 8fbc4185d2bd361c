// The convolution path: one grouped convolution of the projections, whose kernels are composed of the mixing matrix and
// the shifts.
//
// A vector of outputs holds LANES / 4 channels × 4 heads. Each of its channels is a group with 3 · heads inputs: the same
// channel of every head of q, k and v. So for each input head, its lane is spread over the four lanes of its channel and
// multiplied by a vector of weights. The packed kernels are read in order:
//
//     packed   output vector 0: input 0: tap 0: LANES weights | tap 1 | …  | input 1: tap 0 | …     output vector 1: …
//     inputs   q: heads 0 1 2 3 | q: heads 4 … 7 | … | k: heads 0 1 2 3 | … | v: …
#pragma once

#include "threads.h"

namespace {

INLINE int64_t packed_kernels(const Layer& l, const Layout& s) {
  return s.plane * 3 * s.groups * HEADS * l.conv_kernel * l.conv_kernel;
}

// Kernels (outputs, taps, 3 · heads), outputs ordered (head_width, heads) → the packed order; what is filled up gets 0.
void pack_kernels(const Layer& l, const Layout& s, float* packed) {
  const int64_t taps = l.conv_kernel * l.conv_kernel, inputs = 3 * s.groups * HEADS;
  share(l, s.plane / LANES, [&](int64_t vector) {
    float* to = packed + vector * inputs * taps * LANES;
    const int64_t out_group = vector * LANES / s.group, first = vector * LANES % s.group / HEADS;
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t c = first + lane / HEADS, head = out_group * HEADS + lane % HEADS;
      const bool real_output = c < l.head_width && head < l.heads;
      const float* from = l.kernels + (c * l.heads + head) * taps * 3 * l.heads;
      for (int64_t plane = 0, i = 0; plane < 3; plane++)
        for (int64_t h = 0; h < s.groups * HEADS; h++, i++)
          for (int64_t tap = 0; tap < taps; tap++)
            to[(i * taps + tap) * LANES + lane] =
                real_output && h < l.heads ? from[tap * 3 * l.heads + plane * l.heads + h] : 0;
    }
  });
}

// Up to this many output pixels side by side; stride up to 2 in the fast version.
constexpr int PIXELS = 7;
constexpr int SEEN = (PIXELS - 1) * 2 + 3;
// Rows of output at a time: with 32 registers, two rows share inputs and all nine weights stay in registers.
constexpr int CONV_ROWS = LANES == 16 ? 2 : 1;

// Pointers to the input pixels of a block of R × P output pixels of a 3×3 convolution; zeros outside of the map.
struct Patch {
  const float* pixel[(CONV_ROWS - 1) * 2 + 3][SEEN];
};

// Add one input head: in[row][column] + offset, taps at `w`.
template <int H, int R, int P, int S>
INLINE void add_head(const Patch& in, int64_t offset, const float* w, Vec (&sum)[R][P]) {
  Vec weight[9];
  if constexpr (R > 1) {
#pragma GCC unroll 9
    for (int t = 0; t < 9; t++) weight[t] = load(w + t * LANES);
  }
#pragma GCC unroll 8
  for (int y = 0; y < (R - 1) * S + 3; y++) {
    if constexpr (R == 1) {
#pragma GCC unroll 3
      for (int t = 0; t < 3; t++) weight[y * 3 + t] = load(w + (y * 3 + t) * LANES);
    }
#pragma GCC unroll 24
    for (int x = 0; x < (P - 1) * S + 3; x++) {
      const Vec v = spread_head<H>(load(in.pixel[y][x] + offset));
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) {
        const int dy = y - r * S;
        if (dy >= 0 && dy < 3)
#pragma GCC unroll 8
          for (int p = 0; p < P; p++) {
            const int dx = x - p * S;
            if (dx >= 0 && dx < 3) sum[r][p] = v * weight[dy * 3 + dx] + sum[r][p];
          }
      }
    }
  }
}

// One vector of outputs of R × P pixels. `offset`: of the vector's channels in a group of four heads.
template <int R, int P, int S>
static __attribute__((noinline)) void convolve_3x3(const Patch& in, const Layout& s, int64_t offset, const float* w, Vec* out) {
  Vec sum[R][P];
#pragma GCC unroll 2
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) sum[r][p] = Vec{};
  for (int64_t plane = 0; plane < 3; plane++)
    for (int64_t group = 0; group < s.groups; group++, w += 4 * 9 * LANES) {
      const int64_t at = plane * s.plane + group * s.group + offset;
      add_head<0, R, P, S>(in, at, w, sum);
      add_head<1, R, P, S>(in, at, w + 9 * LANES, sum);
      add_head<2, R, P, S>(in, at, w + 18 * LANES, sum);
      add_head<3, R, P, S>(in, at, w + 27 * LANES, sum);
    }
#pragma GCC unroll 2
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) out[r * P + p] = sum[r][p];
}

template <int R, int S, int P = PIXELS>
INLINE void convolve_pixels(int64_t pixels, const Patch& in, const Layout& s, int64_t offset, const float* w, Vec* out) {
  if constexpr (P > 0) {
    if (pixels == P)
      convolve_3x3<R, P, S>(in, s, offset, w, out);
    else
      convolve_pixels<R, S, P - 1>(pixels, in, s, offset, w, out);
  }
}

// One head of any convolution: PIXELS_ANY output pixels; pixel[tap · PIXELS_ANY + p] is what tap sees for pixel p.
constexpr int PIXELS_ANY = 4;
template <int H>
INLINE void add_head_any(const float* const* pixel, int64_t taps, int64_t offset, const float* w, Vec (&sum)[PIXELS_ANY]) {
  for (int64_t t = 0; t < taps; t++) {
    const Vec weight = load(w + t * LANES);
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS_ANY; p++)
      sum[p] = spread_head<H>(load(pixel[t * PIXELS_ANY + p] + offset)) * weight + sum[p];
  }
}

// One vector of outputs of PIXELS_ANY pixels, for any kernel, stride and dilation.
void convolve_any(const float* const* pixel, int64_t taps, const Layout& s, int64_t offset, const float* w, Vec* out) {
  Vec sum[PIXELS_ANY];
  for (int p = 0; p < PIXELS_ANY; p++) sum[p] = Vec{};
  for (int64_t plane = 0; plane < 3; plane++)
    for (int64_t group = 0; group < s.groups; group++, w += 4 * taps * LANES) {
      const int64_t at = plane * s.plane + group * s.group + offset;
      add_head_any<0>(pixel, taps, at, w, sum);
      add_head_any<1>(pixel, taps, at, w + taps * LANES, sum);
      add_head_any<2>(pixel, taps, at, w + 2 * taps * LANES, sum);
      add_head_any<3>(pixel, taps, at, w + 3 * taps * LANES, sum);
    }
  for (int p = 0; p < PIXELS_ANY; p++) out[p] = sum[p];
}

}  // namespace
