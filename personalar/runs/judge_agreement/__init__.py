"""Agreement of scorers with human ratings and with planted faults."""
