"""Pictures and tables of what was found. Importing it loads neither torch nor matplotlib."""
