"""The operators: pure functions on tensors, which depend on torch alone. `acmix.py` is the place to start reading.

Importing the package also registers the operators for compiled graphs (`custom_op.py`) and their FLOP formulas
(`flops.py`).
"""

from acmix_zoo.ops import custom_op, flops
from acmix_zoo.ops.dispatch import BACKENDS, explain_plan, use_backend

__all__ = ["BACKENDS", "custom_op", "explain_plan", "flops", "use_backend"]
