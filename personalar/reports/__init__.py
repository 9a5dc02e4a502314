"""Run folders to numbers, charts and pages."""
