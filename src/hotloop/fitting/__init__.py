"""The training loop: settings, precision, one step, one epoch, one fit."""
