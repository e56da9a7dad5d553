"""Generation: requests, scheduling, the step on a batch, sampling, and the service around it."""
