"""The guest end of virtagent: the agent `va-guest`, its methods and its CLI."""
