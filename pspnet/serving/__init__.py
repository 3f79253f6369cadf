"""HTTP server of a model: the ASGI app, its request queue and model thread, the worker processes.

May import client and everything below it, down to inference, artifact and system. Start reading in app.py, then
engine.py and processes/supervisor.py.
"""
