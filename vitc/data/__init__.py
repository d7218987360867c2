"""Images: where they come from, which one when, and how they reach the device as uint8."""
