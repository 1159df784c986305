"""`python -m hanlin`, and `torchrun -m hanlin`."""

from hanlin.cli.app import main

if __name__ == "__main__":
    main()
