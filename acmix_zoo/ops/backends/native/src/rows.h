// Output rows from the projected rows that they see: attention, convolution, and their sum.
#pragma once

#include "attention.h"
#include "convolution.h"
#include "product.h"

namespace {

// A layer with what follows from it. `Prepared` fills in the pointers.
struct Forward {
  const Layer& l;
  Layout s;
  int64_t rows, cols, outputs;  // of the output
  int64_t att_reach, conv_reach, reach;
  float *weight, *bias;  // packed
  const float *kernels, *zeros;  // zeros: as many as a pixel has floats, or as a row of weights
  const int64_t* columns;  // offset of the pixel at column i − att_reach, reflected

  explicit Forward(const Layer& layer) : l(layer), s(layout_of(layer, PANEL)) {
    rows = (l.height - 1) / l.stride + 1;
    cols = (l.width - 1) / l.stride + 1;
    outputs = l.heads * l.head_width;
    att_reach = l.positions ? l.kernel / 2 * l.dilation : 0;
    conv_reach = l.kernels ? l.conv_kernel / 2 * l.dilation : 0;
    reach = max(att_reach, conv_reach);
  }
};

INLINE int64_t column_count(const Forward& f) {
  return (f.cols + QUERIES) * f.l.stride + 2 * f.att_reach + 1;
}

// Attention of `count` output rows from row y on: → attention[row][column][outputs].
template <int K, int S>
void attend_rows(const Forward& f, const float* const* row, int64_t y, int64_t count, float* attention, Vec* logits,
                 const float** window_rows) {
  const Layer& l = f.l;
  const int64_t kernel = K ? K : l.kernel, stride = S ? S : l.stride;
  const float scale = LOG2_E / __builtin_sqrtf((float)l.head_width);
  for (int64_t r = 0; r < count; r++) {
    const int64_t centre = (y + r) * stride;
    for (int64_t j = 0; j < kernel; j++)
      window_rows[j] = row[reflect(centre + j * l.dilation - f.att_reach, l.height)];
    for (int64_t block = 0; block < f.cols; block += QUERIES) {
      // The last block starts earlier, so that it is full; a map narrower than a block repeats its last query.
      const int64_t x = max(0, min(block, f.cols - QUERIES));
      const Window w{window_rows, f.columns + x * stride, kernel, stride, l.dilation};
      for (int64_t g = 0; g < f.s.groups; g++) {
        const float* q[QUERIES];
        float* out[QUERIES];
        for (int64_t i = 0; i < QUERIES; i++) {
          const int64_t at = min(x + i, f.cols - 1);
          q[i] = row[centre] + at * stride * f.s.pixel + g * f.s.group;
          out[i] = attention + (r * f.cols + at) * f.outputs + g * HEADS * l.head_width;
        }
        attend<K, S>(q, w, f.s, g, l.heads - g * HEADS, l.head_width, scale, logits, out,
                     min(QUERIES, f.cols));
      }
    }
  }
}

void attend_rows_any(const Forward& f, const float* const* row, int64_t y, int64_t count, float* attention, Vec* logits,
                     const float** window_rows) {
  const Layer& l = f.l;
  if (l.dilation == 1 && l.kernel == 7 && l.stride == 1)
    return attend_rows<7, 1>(f, row, y, count, attention, logits, window_rows);
  if (l.dilation == 1 && l.kernel == 7 && l.stride == 2)
    return attend_rows<7, 2>(f, row, y, count, attention, logits, window_rows);
  if (l.dilation == 1 && l.kernel == 3 && l.stride == 1)
    return attend_rows<3, 1>(f, row, y, count, attention, logits, window_rows);
  attend_rows<0, 0>(f, row, y, count, attention, logits, window_rows);
}

// One vector of sums of one pixel → out, by channel ordered (head_width, heads): alpha · attention + sum + offset.
INLINE void finish_vector(const Forward& f, int64_t vector, Vec sum, const float* attention, float* out) {
  const Layer& l = f.l;
  const int64_t group = vector * LANES / f.s.group, first = vector * LANES % f.s.group / HEADS;
  if (l.heads == HEADS && (first + LANES / HEADS) <= l.head_width) {
    const int64_t c = first * HEADS;
    if (l.offset) sum = sum + load(l.offset + c);
    if (attention) sum = (l.alpha ? load(l.alpha + c) : splat(1.f)) * load(attention + c) + sum;
    return store(out + c, sum);
  }
  for (int64_t lane = 0; lane < LANES; lane++) {
    const int64_t channel = first + lane / HEADS, head = group * HEADS + lane % HEADS;
    if (channel >= l.head_width || head >= l.heads) continue;
    const int64_t c = channel * l.heads + head;
    float v = sum[lane];
    if (l.offset) v += l.offset[c];
    if (attention) v = (l.alpha ? l.alpha[c] : 1.f) * attention[c] + v;
    out[c] = v;
  }
}

// Convolution of `count` output rows from row y on, added to alpha · attention if there is one.
void convolve_rows(const Forward& f, const float* const* row, int64_t y, int64_t count, const float* attention, float* out) {
  const Layer& l = f.l;
  const int64_t k = l.conv_kernel, taps = k * k, weights = 3 * f.s.groups * taps * HEADS * LANES;
  // What the taps see, for one block of pixels after the other: the weights of a vector stay in the level-1 cache while
  // they pass over the row.
  Buffer pointers(floats_of<float*>(taps * f.cols));
  if (!pointers.data) return;
  const float** pixel = (const float**)pointers.data;
  for (int64_t r = 0; r < count; r++) {
    for (int64_t x = 0; x < f.cols; x += PIXELS) {
      const int64_t pixels = min(PIXELS, f.cols - x);
      for (int64_t t = 0; t < taps; t++)
        for (int64_t p = 0; p < pixels; p++) {
          const int64_t iy = (y + r) * l.stride + t / k * l.dilation - f.conv_reach;
          const int64_t ix = (x + p) * l.stride + t % k * l.dilation - f.conv_reach;
          const bool inside = iy >= 0 && iy < l.height && ix >= 0 && ix < l.width;
          pixel[x * taps + t * pixels + p] = inside ? row[iy] + ix * f.s.pixel : f.zeros;
        }
    }
    for (int64_t vector = 0; vector < f.s.plane / LANES; vector++)
      for (int64_t x = 0; x < f.cols; x += PIXELS) {
        const int64_t pixels = min(PIXELS, f.cols - x), first = (r * f.cols + x) * f.outputs;
        Vec sum[PIXELS];
        convolve(pixels, pixel + x * taps, taps, f.s, 3, vector * LANES % f.s.group, f.kernels + vector * weights, sum);
        for (int64_t p = 0; p < pixels; p++) {
          const int64_t at = first + p * f.outputs;
          finish_vector(f, vector, sum[p], attention ? attention + at : nullptr, out + at);
        }
      }
  }
}

// `count` output rows from row y on. row[i]: where the projections of the image's row i lie.
void finish_rows(const Forward& f, const float* const* row, int64_t y, int64_t count, float* out) {
  const Layer& l = f.l;
  out += y * f.cols * f.outputs;
  if (!l.positions) return convolve_rows(f, row, y, count, nullptr, out);
  const int64_t logits = l.kernel * l.kernel * LANES, pointers = floats_of<float*>(l.kernel);
  Buffer buffer(round_up(logits + pointers, 16) + (l.kernels ? count * f.cols * f.outputs : 0));
  if (!buffer.data) return;
  float* attention = l.kernels ? buffer.data + round_up(logits + pointers, 16) : out;
  attend_rows_any(f, row, y, count, attention, (Vec*)buffer.data, (const float**)(buffer.data + logits));
  if (l.kernels) return convolve_rows(f, row, y, count, attention, out);
  if (l.alpha || l.offset)  // attention alone
    for (int64_t i = 0; i < count * f.cols; i++)
      for (int64_t c = 0; c < f.outputs; c++) {
        float& v = out[i * f.outputs + c];
        v = (l.alpha ? l.alpha[c] : 1.f) * v + (l.offset ? l.offset[c] : 0.f);
      }
}

}  // namespace
