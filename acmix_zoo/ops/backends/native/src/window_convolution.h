// The convolution path of Swin's layer, in two stages: mix the projections of a pixel into k² maps, then convolve these.
//
// Each channel of a head is a group of its own, so a vector holds LANES groups and every product is one of whole vectors:
//
//     maps (k², channels) = fc (k², 3 · heads + 1) · projections (3 · heads + 1, channels)      for each pixel
//     out  (heads, channels) = Σ_taps Σ_maps kernels (heads, tap, map, channels) · maps[pixel seen through the tap]
//
// The maps of a few rows live in a ring. The gradient of the maps is a convolution by the same code, with heads and maps
// exchanged and the taps reversed.
#pragma once

#include "window_layer.h"

namespace {

constexpr int OUTS = 3;                          // accumulators: 3 × 7 of 32 registers, or 3 × 4 of 16
constexpr int SEEN = LANES == 16 ? 7 : 4;        // pixels side by side
constexpr int64_t PIXELS_AT_ONCE = 4 * 7;        // as many rows at a time as have about so many pixels

// A block of output pixels and the channels of one vector, `offset` floats from the first one.
struct ChannelwiseBlock {
  const float* const* pixel;  // what output pixel p sees through a tap: pixel[tap · pixels + p]
  int64_t taps, inputs, channels, offset;
  const float* weights;       // (taps, inputs, outputs, LANES)
  const float* start;         // (outputs, channels), or null: 0
  float* const* out;          // where each pixel's outputs go
};

// out[p][o] = start[o] + Σ_taps Σ_in weights[tap][in][o] · pixel[tap · P + p][in], for O outputs of P pixels.
template <int O, int P>
static __attribute__((noinline)) void channelwise_block(const ChannelwiseBlock& b) {
  Vec sum[O][P];
#pragma GCC unroll 4
  for (int o = 0; o < O; o++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) sum[o][p] = b.start ? load(b.start + o * b.channels + b.offset) : Vec{};
  const float *const *pixel = b.pixel, *weights = b.weights;
  const int64_t next = b.channels, end = b.inputs * next;
  for (int64_t t = 0; t < b.taps; t++, pixel += P) {
    const float* seen[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) seen[p] = pixel[p] + b.offset;
    for (int64_t i = 0; i < end; i += next, weights += O * LANES) {
      Vec weight[O];
#pragma GCC unroll 4
      for (int o = 0; o < O; o++) weight[o] = load_once(weights + o * LANES);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const Vec in = load_once(seen[p] + i);
#pragma GCC unroll 4
        for (int o = 0; o < O; o++) sum[o][p] = weight[o] * in + sum[o][p];
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int o = 0; o < O; o++) store(b.out[p] + o * b.channels + b.offset, sum[o][p]);
}

template <int O, int P = SEEN>
INLINE void channelwise_pixels(int64_t pixels, const ChannelwiseBlock& b) {
  if constexpr (P > 0) {
    if (pixels == P)
      channelwise_block<O, P>(b);
    else
      channelwise_pixels<O, P - 1>(pixels, b);
  }
}

// Kernels packed for `channelwise`: (vectors, blocks of outputs, taps, inputs, outputs of the block, LANES).
struct ChannelwiseKernels {
  const float* packed;
  int64_t inputs, outputs;
};

// Strides of the weights in the caller's kernels. With `reversed`, the taps are counted from the last one.
struct ChannelStrides {
  int64_t channel, out, in;
  bool reversed;
};

// Calls visit(index in packed order, offset in the caller's kernels) for one vector of channels, but not for
// channels of padding.
template <class Visit>
INLINE void for_channelwise(const Windows& w, int64_t inputs, int64_t outputs, const ChannelStrides& strides,
                            int64_t vector, const Visit& visit) {
  const int64_t lanes = min(LANES, w.l.head_width - vector * LANES);
  int64_t to = vector * w.taps * inputs * outputs * LANES;
  for (int64_t o = 0; o < outputs; o += OUTS)
    for (int64_t tap = 0; tap < w.taps; tap++)
      for (int64_t in = 0; in < inputs; in++)
        for (int64_t block = o; block < min(o + OUTS, outputs); block++, to += LANES) {
          const int64_t from = vector * LANES * strides.channel + block * strides.out + in * strides.in +
                               (strides.reversed ? w.taps - 1 - tap : tap);
          for (int64_t lane = 0; lane < lanes; lane++) visit(to + lane, from + lane * strides.channel);
        }
}

// Of WindowLayer::kernels (head_width, heads, maps, taps), for the forward pass and for the gradient of the maps.
INLINE ChannelStrides forward_strides(const Windows& w) {
  return {w.l.heads * w.taps * w.taps, w.taps * w.taps, w.taps, false};
}
INLINE ChannelStrides backward_strides(const Windows& w) {
  return {w.l.heads * w.taps * w.taps, w.taps, w.taps * w.taps, true};
}

INLINE int64_t channelwise_floats(const Windows& w) {
  return w.l.kernels ? w.vectors * w.taps * w.taps * w.l.heads * LANES : 0;
}

void pack_channelwise(const Windows& w, int64_t inputs, int64_t outputs, const ChannelStrides& strides, float* packed) {
  share(w.l, w.vectors, [&](int64_t vector) {
    const int64_t size = w.taps * inputs * outputs * LANES;
    if ((vector + 1) * LANES > w.l.head_width) fill(packed + vector * size, size, 0);
    for_channelwise(w, inputs, outputs, strides, vector,
                    [&](int64_t to, int64_t from) { packed[to] = w.l.kernels[from]; });
  });
}

// The convolution of `count` pixels. pixel[SEEN · taps · block + …]: what a block sees; out[i]: where pixel i's outputs go.
void channelwise(const Windows& w, const ChannelwiseKernels& kernels, const float* const* pixel, int64_t count,
                 const float* start, float* const* out) {
  const float* weights = kernels.packed;
  for (int64_t vector = 0; vector < w.vectors; vector++)
    for (int64_t o = 0; o < kernels.outputs; o += OUTS) {
      const int64_t outs = min(OUTS, kernels.outputs - o), at = o * w.channels;
      for (int64_t first = 0; first < count; first += SEEN) {
        float* to[SEEN];
        const int64_t pixels = min(SEEN, count - first);
        for (int64_t p = 0; p < pixels; p++) to[p] = out[first + p] + at;
        const ChannelwiseBlock block{pixel + first * w.taps, w.taps, kernels.inputs, w.channels, vector * LANES, weights,
                                     start ? start + at : nullptr, to};
        if (outs == 3)
          channelwise_pixels<3>(pixels, block);
        else if (outs == 2)
          channelwise_pixels<2>(pixels, block);
        else
          channelwise_pixels<1>(pixels, block);
      }
      weights += w.taps * kernels.inputs * outs * LANES;
    }
}

// The map that the convolution sees: rolled and in whole windows, or the cropped one.
class Domain {
 public:
  int64_t height, width, reach, rows_at_once;
  bool is_rolled;

  explicit Domain(const Windows& w)
      : height(w.l.conv_is_rolled ? w.l.height : w.l.out_height), width(w.l.conv_is_rolled ? w.l.width : w.l.out_width),
        reach(w.l.conv_kernel / 2), rows_at_once(max(1, PIXELS_AT_ONCE / width)), is_rolled(w.l.conv_is_rolled),
        integers_(w.l.kernels ? floats_of<int64_t>(2 * height * width) : 0) {
    if (!integers_.data || !w.l.kernels) return;
    int64_t *place = (int64_t*)integers_.data, *target = place + height * width;
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++) {
        const int64_t turned_y = (y + w.l.shift_rows) % w.l.height, turned_x = (x + w.l.shift_columns) % w.l.width;
        const bool inside = turned_y < w.l.out_height && turned_x < w.l.out_width;
        *place++ = is_rolled ? w.place(y, x) : w.place((y + w.l.height - w.l.shift_rows) % w.l.height,
                                                       (x + w.l.width - w.l.shift_columns) % w.l.width);
        *target++ = !is_rolled ? y * width + x : inside ? turned_y * w.l.out_width + turned_x : -1;
      }
  }
  bool is_complete() const { return integers_.data; }
  // For each pixel, its place in window order, and the pixel of the results that it is, or −1 if that is cropped.
  const int64_t* place() const { return (const int64_t*)integers_.data; }
  const int64_t* target() const { return place() + height * width; }

 private:
  Buffer integers_;
};

// maps[m] = Σ_i fc[m][i] · projections[i], of one pixel.
INLINE void mix(const Windows& w, const float* projections, float* maps) {
  const int64_t depth = w.planes + 1;
  for (int64_t n = 0; n < w.channels; n += PANEL)
    for (int64_t m = 0; m < w.taps; m += ROWS)
      panel_rows(min(ROWS, w.taps - m), Operands{w.l.fc + m * depth, depth, 1, projections + n, w.channels, depth}, nullptr,
                 maps + m * w.channels + n, w.channels, PANEL);
}

// Mixed rows of the domain. Row y lies at y mod size.
class Mixed {
 public:
  Mixed(const Windows& w, const Domain& domain)
      : w_(w), domain_(domain), size_(min(domain.height, domain.rows_at_once + 2 * domain.reach)),
        floats_(size_ * domain.width * w.taps * w.channels + w.taps * w.channels) {
    if (floats_.data) fill(zeros(), w.taps * w.channels, 0);
  }
  bool is_complete() const { return floats_.data; }
  float* row(int64_t y) const { return floats_.data + (1 + y % size_ * domain_.width) * w_.taps * w_.channels; }
  float* zeros() const { return floats_.data; }
  // Mix the rows that the `rows_at_once` rows from y on see. To be called with rising y.
  void advance(const float* projections, int64_t y) {
    if (next_ < y - domain_.reach) next_ = y - domain_.reach;
    for (const int64_t end = min(domain_.height, y + domain_.rows_at_once + domain_.reach); next_ < end; next_++)
      for (int64_t x = 0; x < domain_.width; x++)
        mix(w_, projections + domain_.place()[next_ * domain_.width + x] * w_.pixel,
            row(next_) + x * w_.taps * w_.channels);
  }

 private:
  const Windows& w_;
  const Domain& domain_;
  int64_t size_, next_ = 0;
  Buffer floats_;
};

// What each pixel of `rows` rows from y on sees through each tap: the pixels, `next` floats apart, of row(y), or `zeros`
// outside of the domain. Taps come one after the other for each block of `block` pixels:
//
//     pixel   pixels 0 … block − 1: tap 0: pixel 0, pixel 1, … | tap 1: … | …      pixels block … 2 · block − 1: …
template <class Row>
INLINE void point_at_pixels(const Windows& w, const Domain& domain, int64_t y, int64_t rows, int64_t block,
                            const float* zeros, int64_t next, const Row& row, const float** pixel) {
  const int64_t k = w.l.conv_kernel, count = rows * domain.width;
  for (int64_t tap = 0; tap < w.taps; tap++) {
    const int64_t up = domain.reach - tap / k, left = domain.reach - tap % k;
    int64_t i = 0, first = 0, here = min(block, count);
    for (int64_t r = y - up; r < y - up + rows; r++) {
      const float* seen = r >= 0 && r < domain.height ? row(r) : nullptr;
      for (int64_t x = -left; x < domain.width - left; x++, i++) {
        if (i == first + here) first += here, here = min(block, count - first);
        pixel[first * w.taps + tap * here + i - first] = seen && x >= 0 && x < domain.width ? seen + x * next : zeros;
      }
    }
  }
}

// Convolves the rows of one image in order.
class Convolution {
 public:
  Convolution(const Windows& w, const Domain& domain, const ChannelwiseKernels& kernels, const float* start)
      : w_(w), domain_(domain), kernels_(kernels), start_(start), mixed_(w, domain),
        pointers_(floats_of<float*>((w.taps + 1) * domain.rows_at_once * domain.width)),
        sums_(domain.rows_at_once * domain.width * w.l.heads * w.channels) {}
  bool is_complete() const { return mixed_.is_complete() && pointers_.data && sums_.data; }

  // Rows from `first` up to `last`, to `out`, the caller's image.
  void run(const float* projections, int64_t first, int64_t last, float* out) {
    const int64_t most = domain_.rows_at_once * domain_.width, sums = w_.l.heads * w_.channels;
    const float** pixel = (const float**)pointers_.data;
    float** to = (float**)pointers_.data + w_.taps * most;
    for (int64_t i = 0; i < most; i++) to[i] = sums_.data + i * sums;
    for (int64_t y = first; y < last; y += domain_.rows_at_once) {
      const int64_t rows = min(domain_.rows_at_once, last - y), count = rows * domain_.width;
      mixed_.advance(projections, y);
      point_at_pixels(w_, domain_, y, rows, SEEN, mixed_.zeros(), w_.taps * w_.channels,
                      [&](int64_t row) { return mixed_.row(row); }, pixel);
      channelwise(w_, kernels_, pixel, count, start_, to);
      for (int64_t i = 0; i < count; i++) {
        const int64_t target = domain_.target()[y * domain_.width + i];
        if (target >= 0)
          transpose(to[i], w_.channels, w_.l.heads, w_.l.head_width, out + target * w_.outputs, w_.l.heads);
      }
    }
  }

 private:
  const Windows& w_;
  const Domain& domain_;
  ChannelwiseKernels kernels_;
  const float* start_;
  Mixed mixed_;
  Buffer pointers_, sums_;
};

}  // namespace
