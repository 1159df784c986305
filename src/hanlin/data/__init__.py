"""From files to packed batches: read preference pairs, fit their lengths, pack them, deliver them step by step."""
