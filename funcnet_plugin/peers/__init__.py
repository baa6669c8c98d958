"""Methods that cut something else than neurons."""
