"""``python -m hotloop`` is the command line."""

from hotloop.cli import main

if __name__ == "__main__":
    main()
