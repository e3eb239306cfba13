"""From files to verified tensors on a device, beside the version that serves."""
