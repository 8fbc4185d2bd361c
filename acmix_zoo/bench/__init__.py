"""Time and memory of networks and layers, measured side by side. `acmix-zoo bench` runs it."""
