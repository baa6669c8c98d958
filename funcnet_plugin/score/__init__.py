"""Says what each neuron is worth: scorers, of which functional networks are one."""
