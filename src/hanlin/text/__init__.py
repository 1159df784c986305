"""Text: tokenizers, chat formats, encoding and the script of a text. Never imports torch."""
