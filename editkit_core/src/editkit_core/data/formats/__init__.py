"""The formats of public data sets, one a module, and our own."""
