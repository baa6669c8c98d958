"""From neuron statistics to a smaller model: scores, budget, surgery, compensation."""
