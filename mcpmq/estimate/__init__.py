"""Estimate sizes, memory and time of a plan from headers alone."""
