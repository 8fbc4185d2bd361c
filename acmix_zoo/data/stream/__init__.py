"""Streamed data sets: shards are read in order, so a pass needs no index of all images."""
