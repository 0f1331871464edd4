"""Three experiments on every device, timed honestly: ``hotloop bench``."""
