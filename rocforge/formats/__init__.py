"""Block formats: their sizes, their planar layouts on a device, and their values by NumPy. Nothing here knows CuPy."""
