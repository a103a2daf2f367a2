"""Models of real classes, small and with random weights, in the formats of the model hub."""
