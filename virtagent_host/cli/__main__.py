"""`python -m virtagent_host.cli`: the same as `va-host`, where the script is not installed."""

import sys

from . import main

sys.exit(main())
