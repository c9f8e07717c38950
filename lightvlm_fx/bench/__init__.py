"""`lightvlm bench`: time and memory, side by side."""
