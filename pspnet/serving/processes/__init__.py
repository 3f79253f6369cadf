"""Worker processes of `pspnet serve`: supervisor, worker, shared metrics and log.

Imports pspnet.serving and what it may import. Only worker.py loads torch and the web packages. Start reading in
supervisor.py.
"""
