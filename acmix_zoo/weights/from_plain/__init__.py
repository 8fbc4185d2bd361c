"""Start an ACmix network from the pretrained weights of its plain counterpart."""
