"""``python -m visionsft``: the same as the command ``visionsft``."""

from visionsft.cli import main

main()
