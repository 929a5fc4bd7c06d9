"""Services of the host, called by programs of the guest: ``from virtagent_guest.calls.client import
call_service``."""
