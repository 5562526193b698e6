"""Reading requests and data sets."""
