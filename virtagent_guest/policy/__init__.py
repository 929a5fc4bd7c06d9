"""What the host may ask of this guest: allow and block lists, and a file of rules (docs/policy.md)."""
