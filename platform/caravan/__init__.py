"""Caravan: an open post-training recipe as one library."""
