"""From verified tensors to images."""
