"""What answers: buckets of graphs, caches, and the plan of a batch."""
