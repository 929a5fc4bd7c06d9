"""Events from the guest, on the host's side: taken, kept for who was away, told to who is there."""

#: What they are on the bridge.
GUEST_EVENT = "VA_GUEST_EVENT"
#: Events of the guest that had no room there.
GUEST_EVENTS_LOST = "VA_GUEST_EVENTS_LOST"
