"""Cache of decoded images and masks for later epochs, in memory or on disk.

Imports only `data.channels` and `errors`. Start with `cache_folder.py` (`open_cache`), then `sample_cache.py`.
"""
