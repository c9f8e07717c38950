"""What a pass is, running several in order, and the report of what they did."""
