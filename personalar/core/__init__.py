"""Types and utilities that all other packages use."""
