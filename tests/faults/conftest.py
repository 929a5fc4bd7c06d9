"""SIGTERM, such as a CI's timeout, ends these tests like Ctrl-C, too: no QEMU and no va-host is left."""

from tests.guest.conftest import end_by_sigterm

__all__ = ["end_by_sigterm"]
