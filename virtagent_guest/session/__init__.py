"""The agent of a user's session: `va-guest session`."""
