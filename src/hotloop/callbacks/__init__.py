"""What happens around training: callbacks, progress, plots, loggers."""
