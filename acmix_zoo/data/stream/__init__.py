"""Loaders for data that is read shard by shard: `reader.py` reads, `batch_stream.py` makes batches."""
