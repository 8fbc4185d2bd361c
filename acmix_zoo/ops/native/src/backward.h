// The backward pass of everything behind the projections. What the projections' own gradients need, two matrix products,
// is left to PyTorch.
//
// Each image is worked on by one thread and leaves its share of the parameters' gradients in a buffer of its own. At the
// end these are added up in the order of the images, so the bits do not depend on the number of threads.
#pragma once

#include "attention_backward.h"
#include "convolution_backward.h"

namespace {

// One group of the gradients of one output pixel, (heads, head_width) → (channels, four heads), times alpha if that
// differs between channels.
INLINE void turn_gradient(const Forward& f, const float* grad, int64_t group, float* to) {
  const Layer& l = f.l;
  const int64_t d = l.head_width, first = group * HEADS * d;
  const float* alpha = l.alpha && !l.alpha_is_scalar ? l.alpha + first : nullptr;
  grad += first;
  for (int64_t c = 0; c < f.s.channels; c += 4, to += 4 * HEADS) {
    if (l.heads - group * HEADS >= HEADS && c + 4 <= d && !alpha) {
      Vec4 a = load4(grad + c), b = load4(grad + d + c), e = load4(grad + 2 * d + c), g = load4(grad + 3 * d + c);
      transpose4(a, b, e, g);
      store4(to, a);
      store4(to + 4, b);
      store4(to + 8, e);
      store4(to + 12, g);
      continue;
    }
    for (int64_t i = 0; i < 4; i++)
      for (int64_t h = 0; h < HEADS; h++) {
        const bool real = group * HEADS + h < l.heads && c + i < d;
        to[i * HEADS + h] = real ? grad[h * d + c + i] * (alpha ? alpha[h * d + c + i] : 1.f) : 0;
      }
  }
}

// The attention of one image: adds to its d_projections, returns its share of alpha's gradient.
template <int K, int S>
double attention_backward(const Forward& f, const float* const* row, float* const* d_row, const float* grad) {
  const Layer& l = f.l;
  const int64_t kernel = K ? K : l.kernel, stride = S ? S : l.stride;
  const float alpha = l.alpha && l.alpha_is_scalar ? l.alpha[0] : 1.f;
  Buffer buffer(2 * kernel * kernel * LANES + QUERIES * f.s.group), pointers(2 * floats_of<float*>(kernel));
  Vec* room = (Vec*)buffer.data;
  float* turned = buffer.data + 2 * kernel * kernel * LANES;
  const float** window_rows = (const float**)pointers.data;
  float** d_rows = (float**)pointers.data + kernel;
  double d_alpha = 0;  // a sum over the whole map, whose terms cancel
  for (int64_t y = 0; y < f.rows; y++) {
    Vec of_row = Vec{};
    const int64_t centre = y * stride;
    for (int64_t j = 0; j < kernel; j++) {
      const int64_t seen = reflect(centre + j * l.dilation - f.att_reach, l.height);
      window_rows[j] = row[seen];
      d_rows[j] = d_row[seen];
    }
    for (int64_t block = 0; block < f.cols; block += QUERIES) {
      const int64_t x = max(0, min(block, f.cols - QUERIES));
      const Window w{window_rows, f.columns + x * stride, kernel, stride, l.dilation};
      for (int64_t g = 0; g < f.s.groups; g++) {
        const float *q[QUERIES], *gradient[QUERIES];
        float* d_q[QUERIES];
        for (int64_t i = 0; i < QUERIES; i++) {
          const int64_t at = min(x + i, f.cols - 1), offset = at * stride * f.s.pixel + g * f.s.group;
          q[i] = row[centre] + offset;
          d_q[i] = d_row[centre] + offset;
          gradient[i] = turned + i * f.s.group;
          if (x + i >= block && x + i < f.cols)
            turn_gradient(f, grad + (y * f.cols + at) * f.outputs, g, turned + i * f.s.group);
          else  // the block repeats a query that another one counts
            for (int64_t c = 0; c < f.s.group; c++) turned[i * f.s.group + c] = 0;
        }
        of_row = of_row + attend_backward<K, S>(q, gradient, w, d_rows, d_q, f.s, g, l.head_width, alpha, room);
      }
    }
    for (int i = 0; i < LANES; i++) d_alpha += of_row[i];
  }
  return d_alpha;
}

double attention_backward_any(const Forward& f, const float* const* row, float* const* d_row, const float* grad) {
  const Layer& l = f.l;
  if (l.dilation == 1 && l.kernel == 7 && l.stride == 1) return attention_backward<7, 1>(f, row, d_row, grad);
  if (l.dilation == 1 && l.kernel == 7 && l.stride == 2) return attention_backward<7, 2>(f, row, d_row, grad);
  if (l.dilation == 1 && l.kernel == 3 && l.stride == 1) return attention_backward<3, 1>(f, row, d_row, grad);
  return attention_backward<0, 0>(f, row, d_row, grad);
}

// (height, width, head_width): minus the keys' gradients, summed over the heads. Before the convolution adds to them.
void position_gradient(const Forward& f, const float* d_projections, float* to) {
  const Layer& l = f.l;
  for (int64_t i = 0; i < l.height * l.width; i++, d_projections += f.s.pixel)
    for (int64_t c = 0; c < l.head_width; c++) {
      const float* k = d_projections + f.s.plane + c * HEADS;
      float sum = 0;
      for (int64_t g = 0; g < f.s.groups; g++)
        for (int64_t h = 0; h < HEADS; h++) sum += k[g * f.s.group + h];
      *to++ = -sum;
    }
}

// Adds the images' shares, share i of `images` at shares + i · stride, to what is there.
INLINE void add_up(const float* shares, int64_t images, int64_t stride, float& sum) {
  for (int64_t i = 0; i < images; i++) sum += shares[i * stride];
}

void backward(const Layer& l) {
  const Prepared prepared(l);
  const Forward& f = prepared.f;
  const int64_t taps = l.kernels ? l.conv_kernel * l.conv_kernel : 0, pixels = l.height * l.width;
  const int64_t places = l.d_positions ? pixels * l.head_width : 0;
  const int64_t kernels = l.d_kernels ? packed_kernels(f.s, taps) : 0;
  const int64_t shares = round_up(places + kernels, 16);
  Buffer all(l.batch * shares), alphas(floats_of<double>(l.batch));
  double* alpha = (double*)alphas.data;
  auto run = [&](const TapClasses* classes) {
    share(l, l.batch, [&](int64_t image) {
      const int64_t row_floats = l.width * f.s.pixel;
      float *positions = all.data + image * shares, *kernel = positions + places;
      Buffer own(l.projections ? 0 : pixels * f.s.pixel), pointers(2 * floats_of<float*>(l.height));
      float* projections = l.projections ? l.projections + image * pixels * f.s.pixel : own.data;
      if (!l.projections) {
        multiply(l.x + image * pixels * l.inputs, pixels, l.inputs, f.weight, f.bias, projections, f.s, 0, f.s.columns);
        if (l.positions) subtract_positions(f, l.positions, pixels, projections);
      }
      float* d_projections = l.d_projections + image * pixels * f.s.pixel;
      for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < 3 * f.s.plane; c++) d_projections[i * f.s.pixel + c] = 0;
      const float** row = (const float**)pointers.data;
      float** d_row = (float**)pointers.data + l.height;
      for (int64_t y = 0; y < l.height; y++) {
        row[y] = projections + y * row_floats;
        d_row[y] = d_projections + y * row_floats;
      }
      const float* grad = l.grad + image * f.rows * f.cols * f.outputs;
      if (l.positions) alpha[image] = attention_backward_any(f, row, d_row, grad);
      if (l.d_positions) position_gradient(f, d_projections, positions);
      if (!l.kernels) return;
      Buffer filled(is_filled_up(f) ? 0 : f.rows * f.cols * f.s.plane);
      if (!is_filled_up(f)) fill_up_gradient(f, grad, f.rows * f.cols, filled.data);
      const float* full = is_filled_up(f) ? grad : filled.data;
      convolve_backward(f, *classes, full, d_projections);
      if (!l.d_kernels) return;
      for (int64_t i = 0; i < kernels; i++) kernel[i] = 0;
      kernel_gradients(f, row, full, kernel);
    });
  };
  if (l.kernels) {
    const TapClasses classes(f);
    run(&classes);
  } else {
    run(nullptr);
  }
  for (int64_t i = 0; i < places; i++) add_up(all.data + i, l.batch, shares, l.d_positions[i]);
  if (l.d_alpha) {
    double sum = 0;
    for (int64_t image = 0; image < l.batch; image++) sum += alpha[image];
    *l.d_alpha += (float)sum;
  }
  if (!l.d_kernels) return;
  Buffer order(floats_of<int64_t>(taps));
  int64_t* tap = (int64_t*)order.data;
  for (int64_t i = 0; i < taps; i++) tap[i] = i;
  share(l, f.s.plane / LANES, [&](int64_t vector) {
    for_weights(l, f.s, forward_strides(l), 3, tap, taps, vector, [&](int64_t i, int64_t to) {
      if (to >= 0) add_up(all.data + places + i, l.batch, shares, l.d_kernels[to]);
    });
  });
}

}  // namespace
