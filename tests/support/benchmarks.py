"""A row of the benchmark for tests that need no real measurement."""

from acmix_zoo.bench.results import Row

ROW = Row("acmix2d:64x56", "inference", 2, "float32", 8, "64×56×56", 40.0, 39.0, 42.0, 200.0, 20.0, 10**8, 40.0, 0.2)
