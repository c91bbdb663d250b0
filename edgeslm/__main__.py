"""``python -m edgeslm``."""

from edgeslm.cli.main import main

main()
