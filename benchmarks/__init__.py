"""Measured comparisons of hotloop with its peers and with loops written by hand."""
