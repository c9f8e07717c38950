"""Running, checking and describing an exported folder. Needs NumPy and onnxruntime; never torch."""
