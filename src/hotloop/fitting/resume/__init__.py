"""Save a run while it trains, and go on from where it was."""
