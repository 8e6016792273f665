"""The command `retcon`."""

from retcon.cli.app import main

__all__ = ["main"]
