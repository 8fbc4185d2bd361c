// Runs the native library over small geometries of every kind, for a build with sanitisers. Each tensor lies in memory of
// exactly its size, so that an access outside of it is found. Then every allocation of some of these calls is made to
// fail, one after the other. Prints "clean" at the end.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// How many allocations succeed before one fails; negative: all succeed.
std::atomic<int> successes{-1};
void* allocate(size_t alignment, size_t bytes) {
  return successes >= 0 && successes-- == 0 ? nullptr : std::aligned_alloc(alignment, bytes);
}

}  // namespace

#define ALLOCATE allocate
#include "backward.h"
#include "window.h"

namespace {

void run_on_threads(void (*task)(void*), void* shared, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; i++) others.emplace_back(task, shared);
  task(shared);
  for (std::thread& other : others) other.join();
}

void forget_buffers() {
  for (Slot& slot : slots) {
    free(slot.memory);
    slot = Slot{};
  }
}

struct Tensor {
  std::vector<float> values;
  explicit Tensor(int64_t n) : values(n) {
    static unsigned state = 1;
    for (float& v : values) v = (float)((state = state * 1664525u + 1013904223u) >> 8) / 16777216.f - .5f;
  }
  float* data() { return values.data(); }
};

struct Case {
  int64_t batch, height, width, inputs, heads, head_width, kernel, stride, dilation, conv_kernel;
};

// Returns whether there was enough memory.
bool run(const Case& c, bool attends, bool convolves, bool keeps, bool scalar_alpha, int64_t threads) {
  Layer l{};
  l.batch = c.batch, l.height = c.height, l.width = c.width, l.inputs = c.inputs, l.heads = c.heads;
  l.head_width = c.head_width, l.kernel = c.kernel, l.stride = c.stride, l.dilation = c.dilation;
  l.conv_kernel = c.conv_kernel, l.threads = threads, l.parallel = run_on_threads, l.alpha_is_scalar = scalar_alpha;
  const int64_t outputs = c.heads * c.head_width, taps = c.conv_kernel * c.conv_kernel, pixels = c.height * c.width;
  const int64_t rows = (c.height - 1) / c.stride + 1, cols = (c.width - 1) / c.stride + 1;
  Tensor x(c.batch * pixels * c.inputs), weight(3 * outputs * c.inputs), bias(3 * outputs);
  Tensor positions(pixels * c.head_width), kernels(outputs * taps * 3 * c.heads), alpha(outputs), offset(outputs);
  Tensor out(c.batch * rows * cols * outputs), kept(c.batch * pixels * layout_of(l, PANEL).pixel);
  Tensor d_x(x.values.size()), d_weight(weight.values.size()), d_bias(bias.values.size());
  Tensor d_positions(positions.values.size()), d_kernels(kernels.values.size()), d_alpha(1);
  l.x = x.data(), l.weight = weight.data(), l.bias = bias.data(), l.out = out.data(), l.offset = offset.data();
  if (attends) l.positions = positions.data(), l.d_positions = d_positions.data();
  if (convolves) l.kernels = kernels.data(), l.d_kernels = d_kernels.data();
  if (attends && convolves) l.alpha = alpha.data();
  if (l.alpha && scalar_alpha) l.d_alpha = d_alpha.data();
  if (keeps) l.projections = kept.data();
  const Status forward_status = try_to([&] { forward(l); });
  Tensor grad(out.values.size());
  l.grad = grad.data(), l.d_x = d_x.data(), l.d_weight = d_weight.data(), l.d_bias = d_bias.data();
  return try_to([&] { backward(l); }) == OK && forward_status == OK;
}

void fail(const char* message) {
  std::puts(message);
  std::exit(1);
}

struct WindowCase {
  int64_t batch, rows, columns, window_height, window_width, shift_rows, shift_columns, heads, head_width, conv_kernel;
};

bool run_windows(const WindowCase& c, bool attends, bool convolves, bool is_rolled, int64_t crop, int64_t threads) {
  WindowLayer l{};
  l.batch = c.batch, l.height = c.rows * c.window_height, l.width = c.columns * c.window_width, l.heads = c.heads;
  l.head_width = c.head_width, l.window_height = c.window_height, l.window_width = c.window_width;
  l.shift_rows = c.shift_rows, l.shift_columns = c.shift_columns, l.conv_kernel = c.conv_kernel;
  l.out_height = l.height - crop % c.window_height, l.out_width = l.width - crop % c.window_width;
  l.conv_is_rolled = is_rolled, l.threads = threads, l.parallel = run_on_threads;
  const int64_t outputs = c.heads * c.head_width, taps = c.conv_kernel * c.conv_kernel;
  const int64_t square = c.window_height * c.window_width * c.window_height * c.window_width;
  Tensor projections(l.batch * l.height * l.width * 3 * outputs), bias(c.heads * square), mask(4 * square);
  Tensor fc(taps * (3 * c.heads + 1)), kernels(outputs * taps * taps), offset(outputs);
  Tensor attention(l.batch * l.out_height * l.out_width * outputs), convolution(attention.values.size());
  Tensor d_attention(attention.values.size()), d_convolution(attention.values.size());
  Tensor d_projections(projections.values.size()), d_bias(bias.values.size()), d_fc(fc.values.size());
  Tensor d_kernels(kernels.values.size());
  l.projections = projections.data(), l.d_projections = d_projections.data();
  if (attends) l.bias = bias.data(), l.mask = mask.data(), l.attention = attention.data();
  if (convolves) l.fc = fc.data(), l.kernels = kernels.data(), l.convolution = convolution.data();
  if (crop) l.offset = offset.data();
  const Status forward_status = try_to([&] { window_forward(l); });
  if (attends) l.d_attention = d_attention.data(), l.d_bias = d_bias.data();
  if (convolves) l.d_convolution = d_convolution.data();
  if (convolves && crop != 1) l.d_fc = d_fc.data(), l.d_kernels = d_kernels.data();
  return try_to([&] { window_backward(l); }) == OK && forward_status == OK;
}

// Call `work` with one allocation after the other made to fail, until none does. It returns whether it has succeeded.
template <class Work>
void fail_every_allocation(const Work& work) {
  bool has_failed = true;
  int n = 0;
  for (; has_failed; n++) {
    forget_buffers();
    successes = n;
    const bool ok = work();
    has_failed = successes < 0;
    if (ok == has_failed) fail("a failed allocation was not reported");
  }
  if (n < 10) fail("too few allocations have failed");
}

}  // namespace

int main() {
  const Case cases[] = {
      {2, 9, 7, 8, 4, 4, 7, 1, 1, 3},    {1, 6, 11, 5, 3, 5, 7, 2, 1, 3},   {3, 1, 4, 3, 5, 2, 3, 1, 2, 3},
      {1, 8, 9, 33, 8, 1, 7, 3, 1, 5},   {1, 70, 3, 16, 4, 16, 7, 1, 1, 3}, {2, 1, 1, 7, 1, 6, 7, 1, 1, 1},
      {5, 12, 13, 64, 4, 16, 7, 2, 1, 3}, {1, 5, 6, 300, 4, 8, 3, 1, 1, 3},  {70, 2, 3, 4, 4, 4, 3, 2, 1, 1},
      {1, 30, 31, 16, 4, 4, 9, 1, 2, 3},
  };
  for (const Case& c : cases)
    for (int paths = 1; paths <= 3; paths++)
      for (int variant = 0; variant < 4; variant++)
        if (!run(c, paths & 1, paths & 2, variant & 1, variant & 2, 1 + variant % 3)) fail("out of memory");
  const WindowCase windows[] = {
      {2, 2, 3, 7, 7, 3, 3, 3, 32, 3}, {1, 1, 1, 7, 7, 0, 0, 5, 33, 3}, {3, 1, 2, 3, 5, 0, 2, 4, 3, 5},
      {1, 3, 2, 1, 1, 0, 0, 1, 1, 1},  {5, 2, 2, 2, 4, 1, 3, 6, 17, 3},
  };
  for (const WindowCase& c : windows)
    for (int paths = 1; paths <= 3; paths++)
      for (int variant = 0; variant < 6; variant++)
        if (!run_windows(c, paths & 1, paths & 2, variant & 1, variant % 3, 1 + variant % 4)) fail("out of memory");
  for (int variant = 0; variant < 2; variant++) {
    for (const Case& c : {cases[0], cases[3], cases[7]})
      fail_every_allocation([&] { return run(c, true, true, variant & 1, true, 1 + variant); });
    fail_every_allocation([&] { return run_windows(windows[1], true, true, variant, variant, 1 + 2 * variant); });
  }
  std::puts("clean");
}
