"""Processes that the host has started in the guest (`va.exec`): they are the agent's, not a link's."""
