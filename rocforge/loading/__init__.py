"""How weights get from a file to a device, while kernels are compiled."""
