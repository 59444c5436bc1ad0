"""`python -m labelwise`."""

import sys

from labelwise.cli import main

sys.exit(main())
