"""Measure the time and memory of networks and layers side by side. `acmix-zoo bench` runs it."""
