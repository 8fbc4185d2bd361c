"""Interchangeable implementations of the operators.

* `local_attention`, chosen by `ops.dispatch`: `global_attention`, `tile_attention`, `offset_attention`. Each is tested
  against `local_attention_reference`.
* `aggregate`, chosen by the type of the device: `offset_sums`, `window_sums`.
* PyTorch's fused attention kernels: `fused_attention` for full attention, `padded_attention` for heads of any width.
"""
