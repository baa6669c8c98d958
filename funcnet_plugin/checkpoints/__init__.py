"""What is written and read: config block, widths of layers, weights, saving."""
