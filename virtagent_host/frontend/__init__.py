"""The near side of the bridge: its synchronous client, what is printed, and the monitor."""
