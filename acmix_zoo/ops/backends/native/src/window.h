// Swin's layer between its projections and the projection of the attention: both paths, forward and backward.
//
// If there are enough images, each thread processes whole images. Otherwise the threads share the windows of an image, then
// the rows of its convolution. In the backward pass, one thread processes an image, and writes its part of the parameters'
// gradients to a buffer of its own. These are summed in the order of the images, so the bits do not depend on the number of
// threads.
#pragma once

#include "window_attention.h"
#include "window_convolution_backward.h"

namespace {

// What the passes over the images read: biases, kernels and offset, packed.
class PreparedWindows {
 public:
  Windows w;
  Domain domain;
  Biases biases;
  ChannelwiseKernels kernels;
  const float* start;

  PreparedWindows(const WindowLayer& l, bool is_backward)
      : w(l), domain(w), kernels_(channelwise_floats(w)), bias_((w.l.bias ? l.heads + 4 : 0) * w.length * w.queries),
        start_(l.offset ? l.heads * w.channels : 0) {
    if (!is_complete()) return;
    const int64_t square = w.length * w.queries;
    if (l.bias) pack_bias(w, l.bias, l.heads, bias_.data);
    if (l.bias && l.mask) pack_bias(w, l.mask, 4, bias_.data + l.heads * square);
    biases = {bias_.data, l.bias && l.mask ? bias_.data + l.heads * square : nullptr};
    start = l.offset ? start_.data : nullptr;
    if (l.offset) {
      fill(start_.data, l.heads * w.channels, 0);
      transpose(l.offset, l.heads, l.head_width, l.heads, start_.data, w.channels);
    }
    if (!l.kernels) return;
    kernels = is_backward ? ChannelwiseKernels{kernels_.data, l.heads, w.taps}
                          : ChannelwiseKernels{kernels_.data, w.taps, l.heads};
    pack_channelwise(w, kernels.inputs, kernels.outputs, is_backward ? backward_strides(w) : forward_strides(w),
                     kernels_.data);
  }
  bool is_complete() const { return domain.is_complete() && kernels_.data && bias_.data && start_.data; }

 private:
  Buffer kernels_, bias_, start_;
};

// Copies the windows from `first` up to `last` of an image to window order, and runs their attention.
void forward_windows(const PreparedWindows& p, int64_t image, int64_t first, int64_t last, const AttentionRoom& room,
                     float* projections) {
  const Windows& w = p.w;
  for (int64_t window = first; window < last; window++) {
    float* to = projections + window * w.length * w.pixel;
    turn_window(w, w.l.projections + image * w.pixels() * 3 * w.outputs, window, to);
    if (w.l.bias) attend_window(w, p.biases, to, window, room, w.l.attention + image * w.out_pixels() * w.outputs);
  }
}

// A whole image by one thread. Rows are convolved as soon as everything they read is in window order.
void forward_image(const PreparedWindows& p, int64_t image) {
  const Windows& w = p.w;
  Buffer projections(w.pixels() * w.pixel), memory(AttentionRoom::floats(w));
  Convolution convolution(w, p.domain, p.kernels, p.start);
  if (!projections.data || !memory.data || !convolution.is_complete()) return;
  const AttentionRoom room(w, memory.data);
  const bool in_order = p.domain.is_rolled || w.l.shift_rows == 0;
  int64_t done = 0;
  for (int64_t row = 0; row < w.rows; row++) {
    forward_windows(p, image, row * w.columns, (row + 1) * w.columns, room, projections.data);
    if (!w.l.kernels || (!in_order && row + 1 < w.rows)) continue;
    const int64_t complete = (row + 1) * w.l.window_height - p.domain.reach - 1;
    int64_t end = max(done, min(complete, p.domain.height));
    end = row + 1 == w.rows ? p.domain.height : end / p.domain.rows_at_once * p.domain.rows_at_once;
    convolution.run(projections.data, done, end, w.l.convolution + image * w.out_pixels() * w.outputs);
    done = max(done, end);
  }
}

// A whole image by all threads.
void forward_shared_image(const PreparedWindows& p, int64_t image) {
  const Windows& w = p.w;
  Buffer projections(w.pixels() * w.pixel);
  if (!projections.data) return;
  share(w.l, w.rows * w.columns, [&](int64_t window) {
    Buffer memory(AttentionRoom::floats(w));
    if (!memory.data) return;
    forward_windows(p, image, window, window + 1, AttentionRoom(w, memory.data), projections.data);
  });
  if (!w.l.kernels) return;
  const int64_t steps = (p.domain.height + p.domain.rows_at_once - 1) / p.domain.rows_at_once;
  const int64_t rows = (steps + w.l.threads - 1) / w.l.threads * p.domain.rows_at_once;
  share(w.l, (p.domain.height + rows - 1) / rows, [&](int64_t task) {
    Convolution convolution(w, p.domain, p.kernels, p.start);
    if (!convolution.is_complete()) return;
    convolution.run(projections.data, task * rows, min((task + 1) * rows, p.domain.height),
                    w.l.convolution + image * w.out_pixels() * w.outputs);
  });
}

void window_forward(const WindowLayer& l) {
  const PreparedWindows p(l, false);
  if (!p.is_complete()) return;
  if (l.threads > 1 && l.parallel && l.batch % l.threads && l.batch < 4 * l.threads)
    for (int64_t image = 0; image < l.batch; image++) forward_shared_image(p, image);
  else
    share(l, l.batch, [&](int64_t image) { forward_image(p, image); });
}

// One image's gradients. `shares`: of the bias (heads, keys, queries), of the kernels and of fc.
void backward_image(const PreparedWindows& p, int64_t image, float* d_bias, const ConvolutionSums& sums) {
  const Windows& w = p.w;
  Buffer turned(w.pixels() * w.pixel), gradients(w.pixels() * w.pixel), memory(AttentionRoom::floats(w));
  if (!turned.data || !gradients.data || !memory.data) return;
  const AttentionRoom room(w, memory.data);
  const int64_t windows = w.rows * w.columns, of_window = w.length * w.pixel, out = image * w.out_pixels() * w.outputs;
  if (!w.l.bias) fill(gradients.data, w.pixels() * w.pixel, 0);
  for (int64_t window = 0; window < windows; window++) {
    float *to = turned.data + window * of_window, *d_to = gradients.data + window * of_window;
    turn_window(w, w.l.projections + image * w.pixels() * 3 * w.outputs, window, to);
    if (w.l.bias) attend_window_backward(w, p.biases, to, window, room, w.l.d_attention + out, d_to, d_bias);
  }
  if (w.l.kernels)
    convolve_window_backward(w, p.domain, p.kernels, turned.data, w.l.d_convolution + out, gradients.data, sums);
  for (int64_t window = 0; window < windows; window++)
    turn_window_back(w, gradients.data + window * of_window, window, w.l.d_projections + image * w.pixels() * 3 * w.outputs);
}

// Floats that the images' shares may take at a time.
constexpr int64_t SHARES = (16 << 20) / 4;

void window_backward(const WindowLayer& l) {
  const PreparedWindows p(l, true);
  if (!p.is_complete()) return;
  const Windows& w = p.w;
  const int64_t square = w.length * w.queries, of_bias = l.d_bias ? l.heads * square : 0;
  const int64_t of_kernels = l.d_fc ? ConvolutionSums::kernel_floats(w) : 0;
  const int64_t of_fc = l.d_fc ? ConvolutionSums::fc_floats(w) : 0;
  const int64_t size = round_up(of_bias + of_kernels + of_fc, 16);
  const int64_t chunk = min(l.batch, max(l.threads, size ? SHARES / size : l.batch));
  Buffer shares(chunk * size);
  if (!shares.data) return;
  if (l.d_bias) fill(l.d_bias, l.heads * w.length * w.length, 0);
  if (l.d_fc) fill(l.d_fc, w.taps * (w.planes + 1), 0), fill(l.d_kernels, w.outputs * w.taps * w.taps, 0);
  for (int64_t first = 0; first < l.batch; first += chunk) {
    const int64_t images = min(chunk, l.batch - first);
    share(l, images, [&](int64_t i) {
      float *of_image = shares.data + i * size, *kernels = of_image + of_bias;
      fill(of_image, size, 0);
      backward_image(p, first + i, l.d_bias ? of_image : nullptr, {kernels, kernels + of_kernels});
    });
    const auto add_up = [&](int64_t at, float& sum) {
      for (int64_t i = 0; i < images; i++) sum += shares.data[i * size + at];
    };
    if (l.d_bias)
      share(l, l.heads, [&](int64_t head) {
        for (int64_t query = 0; query < w.length; query++)
          for (int64_t key = 0; key < w.length; key++)
            add_up(head * square + key * w.queries + query, l.d_bias[(head * w.length + query) * w.length + key]);
      });
    if (!l.d_fc) continue;
    share(l, l.head_width, [&](int64_t c) {
      for (int64_t head = 0; head < l.heads; head++)
        for (int64_t map = 0; map < w.taps; map++)
          for (int64_t tap = 0; tap < w.taps; tap++)
            add_up(of_bias + ((((c / LANES * w.taps + tap) * l.heads + head) * w.taps + map) * LANES + c % LANES),
                   l.d_kernels[((c * l.heads + head) * w.taps + map) * w.taps + tap]);
    });
    for (int64_t n = 0; n < w.taps * (w.planes + 1); n++)
      for (int64_t lane = 0; lane < LANES; lane++) add_up(of_bias + of_kernels + n * LANES + lane, l.d_fc[n]);
  }
}

}  // namespace
