"""Memory, time and communication of a training step on n GPUs, by formula. `acmix-zoo plan` prints them."""
