"""Weights: what exists, reading every kind of checkpoint, and the weight folder in which weights live.

A weight folder is the same on disk, in a run's output and on the Hub: config.json, model.safetensors, README.md, test/.
"""

from acmix_zoo.weights.create import create_model, list_models
from acmix_zoo.weights.folder import check_folder, read_config, write_folder
from acmix_zoo.weights.load import load_weights

__all__ = ["check_folder", "create_model", "list_models", "load_weights", "read_config", "write_folder"]
