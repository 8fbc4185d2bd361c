// The gradients of the convolution path: of its inputs and of its kernels.
//
// The gradient of the inputs is a convolution of the output's gradient by the same code as in the forward pass. With a
// stride, an input pixel only meets every stride-th tap. Which ones depends on its row and column modulo the stride, so
// there are stride² classes of pixels, each with its own list of taps and packed kernels:
//
//     stride 2, kernel 3      row even, column even: the centre      even, odd: left and right
//                             odd, even: top and bottom              odd, odd: the four corners
#pragma once

#include "forward.h"

namespace {

// The gradient of the output in the layout of a plane: (pixels, groups, channels, four heads).
void fill_up_gradient(const Forward& f, const float* grad, int64_t pixels, float* to) {
  const Layer& l = f.l;
  for (int64_t i = 0; i < pixels; i++, grad += f.outputs)
    for (int64_t g = 0; g < f.s.groups; g++)
      for (int64_t c = 0; c < f.s.channels; c++)
        for (int64_t h = 0; h < HEADS; h++) {
          const int64_t head = g * HEADS + h;
          *to++ = c < l.head_width && head < l.heads ? grad[c * l.heads + head] : 0;
        }
}

// Whether the caller's gradient already is in that layout.
INLINE bool is_filled_up(const Forward& f) { return f.l.heads == HEADS && f.outputs == f.s.plane; }

// The taps that input pixels of one class meet, and the packed kernels of the three planes.
struct TapClass {
  int64_t count;
  const int64_t* taps;
  const float* kernels;
};

class TapClasses {
 public:
  explicit TapClasses(const Forward& f)
      : taps_(f.l.conv_kernel * f.l.conv_kernel), classes_(f.l.stride * f.l.stride),
        integers_(floats_of<int64_t>(taps_ * classes_ + classes_)), floats_(packed_kernels(f.s, taps_)) {
    if (!is_complete()) return;
    const Layer& l = f.l;
    const int64_t inputs = 3 * l.heads;
    const KernelStrides strides{l.heads * taps_ * inputs, 1, 0, taps_ * inputs, inputs};
    float* kernels = floats_.data;
    for (int64_t c = 0; c < classes_; c++) {
      int64_t n = 0;
      for (int64_t t = 0; t < taps_; t++)
        if (meets(l, f.conv_reach, c / l.stride, t / l.conv_kernel) && meets(l, f.conv_reach, c % l.stride, t % l.conv_kernel))
          list(c)[n++] = t;
      counts()[c] = n;
      for (int64_t plane = 0; plane < 3; plane++, kernels += packed_kernels(f.s, n) / 3)
        if (n) pack_kernels(l, f.s, l.kernels + plane * l.heads, strides, 1, list(c), n, kernels);
    }
  }

  bool is_complete() const { return integers_.data && floats_.data; }

  TapClass of(const Forward& f, int64_t c) const {
    const float* kernels = floats_.data;
    for (int64_t before = 0; before < c; before++) kernels += packed_kernels(f.s, counts()[before]);
    return {counts()[c], list(c), kernels};
  }

 private:
  static bool meets(const Layer& l, int64_t reach, int64_t position, int64_t tap) {
    return (position + reach - tap * l.dilation + l.stride * l.dilation * l.conv_kernel) % l.stride == 0;
  }
  int64_t* list(int64_t c) const { return (int64_t*)integers_.data + classes_ + c * taps_; }
  int64_t* counts() const { return (int64_t*)integers_.data; }

  int64_t taps_, classes_;
  Buffer integers_, floats_;
};

// d_projections[pixel] += the gradient of the inputs. `grad` is filled up; `zeros`: a pixel of it outside of the map.
void convolve_backward(const Forward& f, const TapClasses& classes, const float* grad, float* d_projections) {
  const Layer& l = f.l;
  const Layout& s = f.s;
  const int64_t k = l.conv_kernel, vectors = s.plane / LANES;
  Buffer pointers(floats_of<float*>(k * k * PIXELS));
  if (!pointers.data) return;
  const float** pixel = (const float**)pointers.data;
  for (int64_t y = 0; y < l.height; y++)
    for (int64_t column = 0; column < min(l.stride, l.width); column++) {
      const TapClass met = classes.of(f, y % l.stride * l.stride + column);
      if (!met.count) continue;
      const int64_t weights = s.groups * met.count * HEADS * LANES;
      for (int64_t x = column; x < l.width; x += PIXELS * l.stride) {
        const int64_t pixels = min(PIXELS, (l.width - x + l.stride - 1) / l.stride);
        for (int64_t t = 0; t < met.count; t++)
          for (int64_t p = 0; p < pixels; p++) {
            // Both are multiples of the stride; negative ones are outside in any case.
            const int64_t oy = y + f.conv_reach - met.taps[t] / k * l.dilation;
            const int64_t ox = x + p * l.stride + f.conv_reach - met.taps[t] % k * l.dilation;
            const bool inside = oy >= 0 && oy / l.stride < f.rows && ox >= 0 && ox / l.stride < f.cols;
            pixel[t * pixels + p] = inside ? grad + (oy / l.stride * f.cols + ox / l.stride) * s.plane : f.zeros;
          }
        for (int64_t plane = 0; plane < 3; plane++)
          for (int64_t vector = 0; vector < vectors; vector++) {
            Vec sum[PIXELS];
            convolve(pixels, pixel, met.count, s, 1, vector * LANES % s.group,
                     met.kernels + (plane * vectors + vector) * weights, sum);
            for (int64_t p = 0; p < pixels; p++) {
              float* to = d_projections + (y * l.width + x + p * l.stride) * s.pixel + plane * s.plane + vector * LANES;
              store(to, load(to) + sum[p]);
            }
          }
      }
    }
}

// packed[tap][turn] += gradient turned by `turn` · input, over a row of outputs, for N taps beside each other.
template <int N>
static __attribute__((noinline)) void kernel_gradient(const float* grad, int64_t next, int64_t count,
                                                      const float* const* pixel, int64_t taps, int64_t at, float* packed) {
  Vec sum[N][HEADS];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int r = 0; r < HEADS; r++) sum[n][r] = Vec{};  // of the row: long chains of sums round more
  for (int64_t x = 0; x < count; x++, grad += next, pixel += taps) {
    const Vec g = load(grad);
    const Vec turned[HEADS] = {g, rotate_heads<3>(g), rotate_heads<2>(g), rotate_heads<1>(g)};
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      const Vec in = load_once(pixel[n] + at);
#pragma GCC unroll 4
      for (int r = 0; r < HEADS; r++) sum[n][r] = in * turned[r] + sum[n][r];
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int r = 0; r < HEADS; r++) {
      float* to = packed + (n * HEADS + r) * LANES;
      store(to, load(to) + sum[n][r]);
    }
}

// packed += the gradient of the kernels from one image, in the packed order of the forward pass.
void kernel_gradients(const Forward& f, const float* const* row, const float* grad, float* packed) {
  const Layer& l = f.l;
  const Layout& s = f.s;
  const int64_t k = l.conv_kernel, taps = k * k;
  Buffer pointers(floats_of<float*>(f.cols * k));
  if (!pointers.data) return;
  const float** pixel = (const float**)pointers.data;
  for (int64_t y = 0; y < f.rows; y++)
    for (int64_t ty = 0; ty < k; ty++) {
      const int64_t iy = y * l.stride + ty * l.dilation - f.conv_reach;
      if (iy < 0 || iy >= l.height) continue;
      for (int64_t x = 0; x < f.cols; x++)
        for (int64_t tx = 0; tx < k; tx++) {
          const int64_t ix = x * l.stride + tx * l.dilation - f.conv_reach;
          pixel[x * k + tx] = ix >= 0 && ix < l.width ? row[iy] + ix * s.pixel : f.zeros;
        }
      const float* g = grad + y * f.cols * s.plane;
      for (int64_t vector = 0; vector < s.plane / LANES; vector++)
        for (int64_t in = 0; in < 3 * s.groups; in++) {  // planes and groups
          const int64_t at = in * s.group + vector * LANES % s.group;
          float* to = packed + ((vector * 3 * s.groups + in) * taps + ty * k) * HEADS * LANES;
          int64_t tx = 0;
          for (; tx + 3 <= k; tx += 3)
            kernel_gradient<3>(g + vector * LANES, s.plane, f.cols, pixel + tx, k, at, to + tx * HEADS * LANES);
          for (; tx < k; tx++)
            kernel_gradient<1>(g + vector * LANES, s.plane, f.cols, pixel + tx, k, at, to + tx * HEADS * LANES);
        }
    }
}

}  // namespace
