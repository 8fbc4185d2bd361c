"""The mathematics: pure functions on tensors. Depends on torch alone."""
