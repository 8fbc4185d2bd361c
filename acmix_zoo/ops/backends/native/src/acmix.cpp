// The library's plain C interface, called through ctypes by library.py.
#include "backward.h"
#include "window.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Increases with every change of the interface.
PUBLIC int64_t acmix_version() { return 4; }
// Floats of a pixel of the projections.
PUBLIC int64_t acmix_pixel(int64_t heads, int64_t head_width) {
  Layer layer{};
  layer.heads = heads;
  layer.head_width = head_width;
  return layout_of(layer, PANEL).pixel;
}
// These return a Status.
PUBLIC int64_t acmix_forward(const Layer* layer) {
  return try_to([&] { if (layer->batch > 0) forward(*layer); });
}
PUBLIC int64_t acmix_backward(const Layer* layer) {
  return try_to([&] { if (layer->batch > 0) backward(*layer); });
}
PUBLIC int64_t acmix_window_forward(const WindowLayer* layer) {
  return try_to([&] { if (layer->batch > 0) window_forward(*layer); });
}
PUBLIC int64_t acmix_window_backward(const WindowLayer* layer) {
  return try_to([&] { if (layer->batch > 0) window_backward(*layer); });
}
