"""Interchangeable implementations of the operators. `ops.dispatch` chooses among them."""
