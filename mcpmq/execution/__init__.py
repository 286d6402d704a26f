"""Run a torch model one block at a time, with deterministic threading."""
