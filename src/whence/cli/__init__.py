"""The command line: `whence --help`."""

from ._app import app as app, main as main
