"""Agents of users' sessions, behind this one: which there are, and what the host calls of theirs.

`table` knows them, `opening` lets them in, `forwarder` passes the host's calls on, `gate` has the policy
judge those.
"""
