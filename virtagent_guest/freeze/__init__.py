"""Freezing file systems so that it cannot stick: the freezer, a process of its own, and its client in the
agent.

It is apart from the agent because a freeze must end though the agent is killed; see `process` for the rules.
"""
