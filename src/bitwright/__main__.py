"""`python -m bitwright`: the same as the `bitwright` command."""

from bitwright.cli import main

if __name__ == "__main__":
    main()
