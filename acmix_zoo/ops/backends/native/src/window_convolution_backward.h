// The gradients of Swin's convolution path: of the projections, of the mixing matrix and of the kernels.
//
// With G the gradient of the outputs and M that of the maps, for each pixel p and each channel:
//
//     M (maps) = Σ_taps kernelsᵀ · G[pixel that sees p through the tap]       a convolution, as in the forward pass
//     d_projections (3 · heads) += fcᵀ · M            d_fc (maps, 3 · heads + 1) += M · projectionsᵀ
//     d_kernels[tap] (heads, maps) += G · maps[pixel seen through the tap]ᵀ
//
// The last two are sums over pixels of products of two vectors of channels. Each lane is summed by itself.
#pragma once

#include "window_convolution.h"

namespace {

// sums[a · row + b · LANES] += Σ_i left[i][a] · right[i][b], for A × B vectors of the channels from `offset` on.
template <int A, int B>
static __attribute__((noinline)) void correlate_block(const float* const* left, const float* const* right, int64_t count,
                                                      int64_t channels, int64_t left_at, int64_t right_at, float* sums,
                                                      int64_t row) {
  Vec sum[A][B];
#pragma GCC unroll 4
  for (int a = 0; a < A; a++)
#pragma GCC unroll 10
    for (int b = 0; b < B; b++) sum[a][b] = Vec{};  // of these pixels: long chains of sums round more
  for (int64_t i = 0; i < count; i++) {
    const float *l = left[i] + left_at, *r = right[i] + right_at;
    Vec in[A];
#pragma GCC unroll 4
    for (int a = 0; a < A; a++) in[a] = load_once(l + a * channels);
#pragma GCC unroll 10
    for (int b = 0; b < B; b++) {
      const Vec v = load_once(r + b * channels);
#pragma GCC unroll 4
      for (int a = 0; a < A; a++) sum[a][b] = in[a] * v + sum[a][b];
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < A; a++)
#pragma GCC unroll 10
    for (int b = 0; b < B; b++) {
      float* to = sums + a * row + b * LANES;
      store(to, load(to) + sum[a][b]);
    }
}

template <int A>
INLINE void correlate_rows(int64_t columns, const float* const* left, const float* const* right, int64_t count,
                           int64_t channels, int64_t left_at, int64_t offset, float* sums, int64_t row) {
  constexpr int WIDE = LANES == 16 ? 9 : 3;  // accumulators: 27 of 32 registers, or 9 of 16
  int64_t b = 0;
  for (; b + WIDE <= columns; b += WIDE)
    correlate_block<A, WIDE>(left, right, count, channels, left_at, offset + b * channels, sums + b * LANES, row);
  if constexpr (WIDE > 3)
    for (; b + 3 <= columns; b += 3)
      correlate_block<A, 3>(left, right, count, channels, left_at, offset + b * channels, sums + b * LANES, row);
  for (; b < columns; b++)
    correlate_block<A, 1>(left, right, count, channels, left_at, offset + b * channels, sums + b * LANES, row);
}

// sums (rows, columns, LANES) += Σ_i left[i] (rows) · right[i] (columns), for the channels of one vector.
void correlate(int64_t rows, int64_t columns, const float* const* left, const float* const* right, int64_t count,
               int64_t channels, int64_t vector, float* sums) {
  const int64_t row = columns * LANES, offset = vector * LANES;
  int64_t a = 0;
  for (; a + 3 <= rows; a += 3)
    correlate_rows<3>(columns, left, right, count, channels, offset + a * channels, offset, sums + a * row, row);
  for (; a < rows; a++)
    correlate_rows<1>(columns, left, right, count, channels, offset + a * channels, offset, sums + a * row, row);
}

// out[m · apart + column] += Σ_k left[m][k] · right[k][column], for up to ROWS rows and the PANEL columns of a panel.
template <int M>
static __attribute__((noinline)) void add_block(const Operands& o, float* out, int64_t apart) {
  Vec sum[M][2];
#pragma GCC unroll 14
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) sum[m][v] = load(out + m * apart + v * LANES);
  multiply_block<M>(o, sum);
#pragma GCC unroll 14
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) store(out + m * apart + v * LANES, sum[m][v]);
}

template <int M = ROWS>
INLINE void add_panel_rows(int64_t rows, const Operands& o, float* out, int64_t apart) {
  if constexpr (M > 0) {
    if (rows >= M)
      add_block<M>(o, out, apart);
    else
      add_panel_rows<M - 1>(rows, o, out, apart);
  }
}

// projections (3 · heads, channels) += fcᵀ · maps, of one pixel.
INLINE void unmix(const Windows& w, const float* maps, float* projections) {
  const int64_t depth = w.planes + 1;
  for (int64_t n = 0; n < w.channels; n += PANEL)
    for (int64_t m = 0; m < w.planes; m += ROWS)
      add_panel_rows(min(ROWS, w.planes - m), Operands{w.l.fc + m, 1, depth, maps + n, w.channels, w.taps},
                     projections + m * w.channels + n, w.channels);
}

// Pixels for which all taps are summed before the next ones: what they see stays in the level-1 cache.
constexpr int64_t CORRELATED = 28;

// Sums over the pixels of an image: kernels (vectors, taps, heads, maps, LANES), fc (maps, 3 · heads + 1, LANES).
struct ConvolutionSums {
  float *kernels, *fc;
  static int64_t kernel_floats(const Windows& w) { return w.vectors * w.taps * w.l.heads * w.taps * LANES; }
  static int64_t fc_floats(const Windows& w) { return w.taps * (w.planes + 1) * LANES; }
};

// One image: adds to d_projections and, if they are wanted, to the sums. `projections` and `d_projections` are in window
// order; `grad` is the caller's; `kernels` are packed for the gradient of the maps.
void convolve_window_backward(const Windows& w, const Domain& domain, const ChannelwiseKernels& kernels,
                              const float* projections, const float* grad, float* d_projections,
                              const ConvolutionSums& sums) {
  const int64_t pixels = domain.height * domain.width, most = domain.rows_at_once * domain.width;
  const int64_t of_grad = w.l.heads * w.channels, of_maps = w.taps * w.channels;
  Mixed mixed(w, domain);
  Buffer floats(round_up((pixels + 1) * of_grad, 16) + most * of_maps), pointers(floats_of<float*>((w.taps + 3) * most));
  if (!mixed.is_complete() || !floats.data || !pointers.data) return;
  const float** pixel = (const float**)pointers.data;
  const float** outer = pixel + w.taps * most;  // of gradients and of projections
  float** maps = (float**)(pixel + (w.taps + 2) * most);
  float *zeros = floats.data, *turned = zeros + of_grad, *d_maps = zeros + round_up((pixels + 1) * of_grad, 16);
  fill(floats.data, (pixels + 1) * of_grad, 0);
  fill(d_maps, most * of_maps, 0);
  for (int64_t i = 0; i < most; i++) maps[i] = d_maps + i * of_maps;
  for (int64_t i = 0; i < pixels; i++) {
    const int64_t target = domain.target()[i];
    if (target >= 0)
      transpose(grad + target * w.outputs, w.l.heads, w.l.head_width, w.l.heads, turned + i * of_grad, w.channels);
  }
  for (int64_t y = 0; y < domain.height; y += domain.rows_at_once) {
    const int64_t rows = min(domain.rows_at_once, domain.height - y), count = rows * domain.width;
    point_at_pixels(w, domain, y, rows, SEEN, zeros, of_grad,
                    [&](int64_t row) { return turned + row * domain.width * of_grad; }, pixel);
    channelwise(w, kernels, pixel, count, nullptr, maps);
    const float **gradient = outer, **projection = outer + most;
    for (int64_t i = 0; i < count; i++) {
      const int64_t place = domain.place()[y * domain.width + i];
      unmix(w, maps[i], d_projections + place * w.pixel);
      gradient[i] = turned + (y * domain.width + i) * of_grad;
      projection[i] = projections + place * w.pixel;
    }
    if (!w.l.d_fc) continue;
    for (int64_t vector = 0; vector < w.vectors; vector++)
      correlate(w.taps, w.planes + 1, maps, projection, count, w.channels, vector, sums.fc);
    mixed.advance(projections, y);
    point_at_pixels(w, domain, y, rows, CORRELATED, mixed.zeros(), of_maps,
                    [&](int64_t row) { return mixed.row(row); }, pixel);
    for (int64_t vector = 0; vector < w.vectors; vector++)
      for (int64_t first = 0; first < count; first += CORRELATED) {
        const int64_t here = min(CORRELATED, count - first);
        for (int64_t tap = 0; tap < w.taps; tap++)
          correlate(w.l.heads, w.taps, gradient + first, pixel + first * w.taps + tap * here, here, w.channels, vector,
                    sums.kernels + (vector * w.taps + tap) * w.l.heads * w.taps * LANES);
      }
  }
}

}  // namespace
