"""Helpers of the benchmark scripts: cases, hosts, load generators and child processes.

They may import everything of pspnet; nothing in pspnet imports them. Start reading at cases.py and hosts.py.
"""
