"""Releases: package artifacts into one folder, verify it, and compare it with an earlier one."""
