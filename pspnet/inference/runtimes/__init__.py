"""The runtimes that turn images into masks, and the record of what was exported for them."""
