"""Makes up for what was cut, with the neurons that are left."""
