"""Drawn conversations, encoded by mcpmq and by the processors of transformers."""
