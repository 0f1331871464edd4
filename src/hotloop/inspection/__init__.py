"""Looking at a model: its layers, shapes, parameters and arithmetic."""
