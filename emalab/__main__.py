"""``python -m emalab`` is the command line."""

from emalab.cli import main

main()
