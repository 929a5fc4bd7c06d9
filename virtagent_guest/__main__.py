"""`python3 -m virtagent_guest` is va-guest."""

from .commands import main

raise SystemExit(main())
