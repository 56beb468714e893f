"""`python -m embodied`: the command line of a Python whose scripts are not on the path."""

from embodied.cli import main

if __name__ == "__main__":
    main()
