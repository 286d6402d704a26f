"""Samples pass through a model block by block; blocks are rounded by what they see, and held-out samples judge."""
