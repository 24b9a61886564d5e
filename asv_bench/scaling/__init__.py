"""A model of training on many machines: simulated time, costs that were measured, real plans."""
