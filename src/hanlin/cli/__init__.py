"""The front door for people: the `hanlin` command. It only wires rooms together and prints."""
