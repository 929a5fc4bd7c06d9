"""`python3 -m virtagent_guest` is va-guest."""

from .cli import main

raise SystemExit(main())
