"""What both ends of virtagent share: the wire of protocol/SPEC.md, its jobs and its link."""

__version__ = "0.1.0"
