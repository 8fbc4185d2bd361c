"""The triton backend of `local_attention`, for GPUs. Start reading in `attention.py`."""
