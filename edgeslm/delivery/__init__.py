"""Delivery: bringing files to a device, block by block, over links that break and from sources without trust."""
