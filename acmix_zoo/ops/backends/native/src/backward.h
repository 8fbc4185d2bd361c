// The backward pass of the whole layer.
//
// Each image is worked on by one thread and leaves its share of the parameters' gradients in a buffer of its own. These
// are added up in the order of the images, so the bits do not depend on the number of threads.
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
  if (!buffer.data || !pointers.data) return 0;
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

// One image: its d_projections, and its shares of the parameters' gradients.
struct Shares {
  float *positions, *kernels;
  double* alpha;
};
void image_backward(const Forward& f, const TapClasses* classes, int64_t image, float* d_projections, const Shares& to) {
  const Layer& l = f.l;
  const int64_t pixels = l.height * l.width, row_floats = l.width * f.s.pixel;
  Buffer own(l.projections ? 0 : pixels * f.s.pixel), pointers(2 * floats_of<float*>(l.height));
  if (!own.data || !pointers.data) return;
  float* projections = l.projections ? l.projections + image * pixels * f.s.pixel : own.data;
  if (!l.projections) {
    project(f, l.x + image * pixels * l.inputs, pixels, projections, 0, f.s.columns);
    if (l.positions) subtract_positions(f, l.positions, pixels, projections);
  }
  for (int64_t i = 0; i < pixels; i++)
    for (int64_t c = 0; c < 3 * f.s.plane; c += LANES) store(d_projections + i * f.s.pixel + c, Vec{});
  const float** row = (const float**)pointers.data;
  float** d_row = (float**)pointers.data + l.height;
  for (int64_t y = 0; y < l.height; y++) {
    row[y] = projections + y * row_floats;
    d_row[y] = d_projections + y * row_floats;
  }
  const float* grad = l.grad + image * f.rows * f.cols * f.outputs;
  if (l.positions) *to.alpha = attention_backward_any(f, row, d_row, grad);
  if (l.d_positions) position_gradient(f, d_projections, to.positions);
  if (!l.kernels) return;
  Buffer filled(is_filled_up(f) ? 0 : f.rows * f.cols * f.s.plane);
  if (!filled.data) return;
  if (!is_filled_up(f)) fill_up_gradient(f, grad, f.rows * f.cols, filled.data);
  const float* full = is_filled_up(f) ? grad : filled.data;
  convolve_backward(f, *classes, full, d_projections);
  if (!l.d_kernels) return;
  for (int64_t i = 0; i < packed_kernels(f.s, l.conv_kernel * l.conv_kernel); i++) to.kernels[i] = 0;
  kernel_gradients(f, row, full, to.kernels);
}

// The projections' own gradients, for some images whose d_projections are complete.
//
//     d_x (pixels, K) = d_projections (pixels, N) · weight (N, K)        shared by pixels
//     d_weight (N, K) += d_projectionsᵀ (N, pixels) · x (pixels, K)      shared by columns N, in the order of the pixels
class ProjectionGradients {
 public:
  explicit ProjectionGradients(const Forward& f)
      : f_(f), width_(round_up(f.l.inputs, PANEL)), columns_(3 * f.s.plane),
        weight_(f.l.d_x ? width_ * columns_ : 0), sum_(f.l.d_weight ? width_ * columns_ : 0), bias_(columns_),
        last_(f.l.d_weight && f.l.inputs % PANEL ? PIXELS_AT_ONCE * PANEL : 0) {
    if (!is_complete()) return;
    if (f.l.d_x) pack_transposed(f.l, f.s, weight_.data);
    for (int64_t i = 0; i < columns_; i++) bias_.data[i] = 0;
  }

  bool is_complete() const { return weight_.data && sum_.data && bias_.data && last_.data; }

  // `pixels` of x, from pixel `first` on. Pixels must come in the same portions whatever the number of threads is.
  void add(const float* d_projections, int64_t first, int64_t pixels) {
    const Layer& l = f_.l;
    // One thread does both products of a block of pixels while it is in the level-2 cache.
    const int64_t block = l.threads > 1 ? pixels : PIXELS_AT_ONCE;
    for (int64_t from = 0; from < pixels; from += block) {
      const int64_t end = min(from + block, pixels);
      if (l.d_x) add_inputs(d_projections + from * f_.s.pixel, first + from, end - from);
      if (!l.d_weight && !l.d_bias) continue;
      for (int64_t at = from; at < end; at += PIXELS_AT_ONCE)
        add_weight(d_projections + at * f_.s.pixel, l.x + (first + at) * l.inputs, min(PIXELS_AT_ONCE, end - at));
    }
  }

  // The sums, to the caller's gradients.
  void finish() const {
    const Layer& l = f_.l;
    share(l, columns_, [&](int64_t n) {
      const int64_t r = row_of_column(l, f_.s, n);
      if (r < 0) return;
      if (l.d_bias) l.d_bias[r] = bias_.data[n];
      if (l.d_weight)
        for (int64_t k = 0; k < l.inputs; k++) l.d_weight[r * l.inputs + k] = sum_.data[n * width_ + k];
    });
  }

 private:
  static constexpr int64_t PIXELS_AT_ONCE = 512;

  void add_inputs(const float* d, int64_t first, int64_t pixels) {
    const Layer& l = f_.l;
    const int64_t rows = l.inputs < DEEP ? 8 * ROWS : 14 * ROWS;
    share(l, (pixels + rows - 1) / rows, [&](int64_t task) {
      const int64_t from = task * rows;
      multiply(d + from * f_.s.pixel, f_.s.pixel, min(rows, pixels - from), columns_, weight_.data, nullptr,
               l.d_x + (first + from) * l.inputs, l.inputs, 0, width_, l.inputs);
    });
  }

  void add_weight(const float* d, const float* x, int64_t pixels) {
    const Layer& l = f_.l;
    const int64_t full = l.inputs / PANEL * PANEL, rest = l.inputs - full;
    if (l.d_weight && rest)  // the last columns of x, filled up
      for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < PANEL; c++) last_.data[i * PANEL + c] = c < rest ? x[i * l.inputs + full + c] : 0;
    share(l, (columns_ + ROWS - 1) / ROWS, [&](int64_t task) {
      const int64_t n = task * ROWS, rows = min(ROWS, columns_ - n);
      if (l.d_bias) {
        constexpr int VECTORS = (ROWS + LANES - 1) / LANES;  // reads more columns than it uses, within the pixel
        Vec sum[VECTORS] = {};
        for (int64_t i = 0; i < pixels; i++)
          for (int v = 0; v < VECTORS; v++) sum[v] = sum[v] + load(d + i * f_.s.pixel + n + v * LANES);
        for (int64_t j = 0; j < rows; j++) bias_.data[n + j] += sum[j / LANES][j % LANES];
      }
      if (!l.d_weight) return;
      for (int64_t k = 0; k < width_; k += PANEL) {
        const bool whole = k < full;
        add_rows(rows, Operands{d + n, 1, f_.s.pixel, whole ? x + k : last_.data, whole ? l.inputs : PANEL, pixels},
                 sum_.data + n * width_ + k);
      }
    });
    started_ = true;
  }

  template <int M = ROWS>
  void add_rows(int64_t rows, const Operands& o, float* out) {
    if constexpr (M > 0) {
      if (rows >= M) {
        Vec sum[M][2];
#pragma GCC unroll 14
        for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = Vec{};
        multiply_block<M>(o, sum);
#pragma GCC unroll 14
        for (int m = 0; m < M; m++)
          for (int v = 0; v < 2; v++) {
            float* to = out + m * width_ + v * LANES;
            store(to, started_ ? load(to) + sum[m][v] : sum[m][v]);
          }
      } else {
        add_rows<M - 1>(rows, o, out);
      }
    }
  }

  const Forward& f_;
  int64_t width_, columns_;
  bool started_ = false;  // whether there is something in sum_
  Buffer weight_, sum_, bias_, last_;
};

// Floats that the gradients of the projections may take at a time.
constexpr int64_t D_PROJECTIONS = (16 << 20) / 4;
// The fewest pixels for which the gradients of the weights are summed at once.
constexpr int64_t PORTION = 512;

void backward(const Layer& l) {
  const Prepared prepared(l, !l.projections);
  if (!prepared.is_complete()) return;
  const Forward& f = prepared.f;
  const int64_t taps = l.kernels ? l.conv_kernel * l.conv_kernel : 0, pixels = l.height * l.width;
  const int64_t places = l.d_positions ? pixels * l.head_width : 0;
  const int64_t kernels = l.d_kernels ? packed_kernels(f.s, taps) : 0;
  const int64_t shares = round_up(places + kernels, 16);
  // A portion of images is the unit of the weights' sums; as many portions at a time as fit, or as keep all threads busy.
  const int64_t portion = (PORTION + pixels - 1) / pixels;
  const int64_t fit = D_PROJECTIONS / (pixels * f.s.pixel) / portion, busy = (l.threads + portion - 1) / portion;
  const int64_t chunk = min(max(max(fit, busy), 1) * portion, l.batch);
  Buffer d_projections(chunk * pixels * f.s.pixel), all(chunk * shares), alphas(floats_of<double>(chunk));
  double* alpha = (double*)alphas.data;
  double d_alpha = 0;
  ProjectionGradients projection(f);
  Buffer order(floats_of<int64_t>(taps));
  if (!d_projections.data || !all.data || !alphas.data || !order.data || !projection.is_complete()) return;
  int64_t* tap = (int64_t*)order.data;
  for (int64_t i = 0; i < taps; i++) tap[i] = i;
  auto run = [&](const TapClasses* classes) {
    for (int64_t first = 0; first < l.batch; first += chunk) {
      const int64_t images = min(chunk, l.batch - first);
      share(l, images, [&](int64_t i) {
        float* share_of_image = all.data + i * shares;
        image_backward(f, classes, first + i, d_projections.data + i * pixels * f.s.pixel,
                       {share_of_image, share_of_image + places, alpha + i});
      });
      for (int64_t i = 0; i < images; i += portion)
        projection.add(d_projections.data + i * pixels * f.s.pixel, (first + i) * pixels,
                       min(portion, images - i) * pixels);
      for (int64_t i = 0; i < places; i++) add_up(all.data + i, images, shares, l.d_positions[i]);
      for (int64_t i = 0; i < images; i++) d_alpha += alpha[i];
      if (!l.d_kernels) continue;
      share(l, f.s.plane / LANES, [&](int64_t vector) {
        for_weights(l, f.s, forward_strides(l), 3, tap, taps, vector, [&](int64_t i, int64_t to) {
          if (to >= 0) add_up(all.data + places + i, images, shares, l.d_kernels[to]);
        });
      });
    }
  };
  if (l.kernels) {
    const TapClasses classes(f);
    if (!classes.is_complete()) return;
    run(&classes);
  } else {
    run(nullptr);
  }
  projection.finish();
  if (l.d_alpha) *l.d_alpha += (float)d_alpha;
}

}  // namespace
