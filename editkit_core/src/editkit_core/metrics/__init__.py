"""Measuring an edit: what was asked for, and what else changed."""
