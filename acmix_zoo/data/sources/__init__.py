"""Sources of labelled images, one kind per file. All of them look like `base.Source` to the rest of the package."""
