"""What the neurons that are left do for those that went."""
