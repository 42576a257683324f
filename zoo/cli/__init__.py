"""The command line: thin commands over the other rooms. Importing it is light; each command imports what it needs when it runs."""

from zoo.cli.app import main

__all__ = ["main"]
