"""`python -m epp` is the `epp` command."""

import sys

from epp.cli.main import main

sys.exit(main())
