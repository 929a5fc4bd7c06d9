"""Built-in events: what the guest's system tells of itself, one source a module."""
