"""Examples that run as they are. Not in the wheel."""
