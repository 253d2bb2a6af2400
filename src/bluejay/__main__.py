"""`python -m bluejay` is the command `bluejay`."""

from bluejay.cli.main import main

if __name__ == "__main__":
    main()
