"""Programs: flat graphs of a stage, what stands in them, and how to find, edit, size and print it."""
