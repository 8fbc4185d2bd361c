// The convolution path: one grouped convolution of the projections, whose kernels are composed of the mixing matrix and
// the shifts.
//
// A vector holds LANES / 4 channels × 4 heads. Each channel is a group of the convolution: its inputs are that channel of
// every head of q, k and v, its outputs that channel of every head. So four input heads meet four output heads within a
// channel. Instead of spreading each input head over the four lanes, the unpermuted input vector is multiplied by four
// vectors of weights, and what input head h contributes to output head h − r is summed in its own accumulator:
//
//     lane (input head)    0     1     2     3
//     accumulator 0 → out  0     1     2     3
//     accumulator 1 → out  3     0     1     2     rotated by one at the end, when all taps and inputs are summed
//     accumulator 2 → out  2     3     0     1
//     accumulator 3 → out  1     2     3     0
//
// The packed kernels are read in order:
//
//     packed   output vector 0: q: heads 0 … 3: tap 0: accumulator 0: LANES weights | 1 | 2 | 3 | tap 1: …
//                               q: heads 4 … 7: … | k: … | v: …          output vector 1: …
#pragma once

#include "threads.h"

namespace {

// Output pixels side by side: 16 accumulators of 32 registers, or 12 of 16.
constexpr int PIXELS = LANES == 16 ? 4 : 3;

INLINE int64_t packed_kernels(const Layout& s, int64_t taps) { return s.plane * 3 * s.groups * HEADS * taps; }

// How far apart neighbouring weights lie in the caller's kernels: in channels, output heads, planes, input heads, taps.
struct KernelStrides {
  int64_t channel, out, plane, in, tap;
};

// Calls visit(index in packed order, offset in the caller's kernels, or −1 for what only fills up the layout) for all
// weights of one output vector. `taps`: their positions in the caller's kernels.
template <class Visit>
INLINE void for_weights(const Layer& l, const Layout& s, const KernelStrides& k, int64_t planes, const int64_t* taps,
                        int64_t tap_count, int64_t vector, const Visit& visit) {
    int64_t to = vector * planes * s.groups * tap_count * HEADS * LANES;
    const int64_t out_group = vector * LANES / s.group, first = vector * LANES % s.group / HEADS;
    for (int64_t group = 0; group < s.groups; group++) {
      int64_t from[HEADS * LANES];
      for (int64_t turn = 0; turn < HEADS; turn++)
        for (int64_t lane = 0; lane < LANES; lane++) {
          const int64_t c = first + lane / HEADS, in = group * HEADS + lane % HEADS;
          const int64_t out = out_group * HEADS + (lane % HEADS + HEADS - turn) % HEADS;
          const bool real = c < l.head_width && in < l.heads && out < l.heads;
          from[turn * LANES + lane] = real ? c * k.channel + out * k.out + in * k.in : -1;
        }
      for (int64_t plane = 0; plane < planes; plane++)
        for (int64_t tap = 0; tap < tap_count; tap++) {
          const int64_t first_weight = to + ((plane * s.groups + group) * tap_count + tap) * HEADS * LANES;
          const int64_t at = plane * k.plane + taps[tap] * k.tap;
          for (int i = 0; i < HEADS * LANES; i++) visit(first_weight + i, from[i] < 0 ? -1 : from[i] + at);
        }
    }
}

// The caller's kernels in packed order.
INLINE void pack_kernels(const Layer& l, const Layout& s, const float* kernels, const KernelStrides& k, int64_t planes,
                         const int64_t* taps, int64_t tap_count, float* packed) {
  share(l, s.plane / LANES, [&](int64_t vector) {
    for_weights(l, s, k, planes, taps, tap_count, vector,
                [&](int64_t i, int64_t from) { packed[i] = from < 0 ? 0 : kernels[from]; });
  });
}

// One vector of outputs of P pixels. pixel[tap · P + p]: what output pixel p sees through the tap. `planes` input planes,
// `offset`: of the vector's channels in a group of four heads.
template <int P>
static __attribute__((noinline)) void convolve_pixels(const float* const* pixel, int64_t taps, const Layout& s,
                                                      int64_t planes, int64_t offset, const float* w, Vec* out) {
  Vec sum[HEADS][P];
#pragma GCC unroll 4
  for (int r = 0; r < HEADS; r++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) sum[r][p] = Vec{};
  for (int64_t plane = 0; plane < planes; plane++)
    for (int64_t group = 0; group < s.groups; group++) {
      const int64_t at = plane * s.plane + group * s.group + offset;
      const float* const* seen = pixel;
      for (int64_t t = 0; t < taps; t++, seen += P, w += HEADS * LANES) {
        Vec in[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) in[p] = load(seen[p] + at);
#pragma GCC unroll 4
        for (int r = 0; r < HEADS; r++) {
          const Vec weight = load(w + r * LANES);
#pragma GCC unroll 4
          for (int p = 0; p < P; p++) sum[r][p] = in[p] * weight + sum[r][p];
        }
      }
    }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
    out[p] = (sum[0][p] + rotate_heads<1>(sum[1][p])) + (rotate_heads<2>(sum[2][p]) + rotate_heads<3>(sum[3][p]));
}

template <int P = PIXELS>
INLINE void convolve(int64_t pixels, const float* const* pixel, int64_t taps, const Layout& s, int64_t planes,
                     int64_t offset, const float* w, Vec* out) {
  if constexpr (P > 0) {
    if (pixels == P)
      convolve_pixels<P>(pixel, taps, s, planes, offset, w, out);
    else
      convolve<P - 1>(pixels, pixel, taps, s, planes, offset, w, out);
  }
}

}  // namespace
