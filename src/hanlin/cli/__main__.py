"""`python -m hanlin.cli` is the `hanlin` command."""

from hanlin.cli.app import main

main()
