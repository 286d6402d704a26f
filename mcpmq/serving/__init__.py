"""Generate answers of an artifact in its engine, token by token, and serve them."""
