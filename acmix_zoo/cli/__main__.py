"""Run the command line as `python -m acmix_zoo.cli`."""

import sys

from acmix_zoo.cli.main import main

sys.exit(main())
