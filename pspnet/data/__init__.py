"""From files to batches: channels, checks, transforms, loaders, preparation."""
