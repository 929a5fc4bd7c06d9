"""`va-host doctor`: what can be seen of a channel, what that means, and what to do about it."""
