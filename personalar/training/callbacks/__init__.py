"""Lightning callbacks: sample grids, scores, progress, monitoring, and collecting the result."""
