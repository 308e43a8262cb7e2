"""`python -m whence.cli`, for where the command is not on the path."""

from ._app import main

if __name__ == "__main__":
    main()
