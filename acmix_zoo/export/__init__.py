"""Write networks as files that other programs run, and check these files on real images."""
