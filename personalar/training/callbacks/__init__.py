"""Lightning callbacks: sample grids, subject scores, progress."""
