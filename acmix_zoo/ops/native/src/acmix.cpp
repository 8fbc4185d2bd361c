// The library's plain C interface, called through ctypes by library.py.
#include "forward.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Increases with every change of the interface.
PUBLIC int64_t acmix_version() { return 1; }
PUBLIC int64_t acmix_lanes() { return LANES; }
PUBLIC void acmix_forward(const Layer* layer) {
  if (layer->batch > 0) forward(*layer);
}
