"""Lets `python -m edgepool` be the command line."""

from edgepool.cli.main import main

main()
