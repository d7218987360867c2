"""Augmentation: drawn on the host, applied to batches of uint8 on the device."""
