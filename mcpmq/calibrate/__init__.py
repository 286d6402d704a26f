"""Sequential calibration: collect input statistics per block, quantize it, keep the best method on held-out samples."""
