"""Images with boxes, and possibly masks, for detection: sources, checks, augmentation, and the data module."""
