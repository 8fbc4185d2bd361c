"""Images with a mask, which gives each pixel its class: for semantic segmentation."""
