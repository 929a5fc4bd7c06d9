"""Services of the host that programs in the guest may call, if the host's policy lets them."""
