"""The numerics that editing methods share: keys, statistics, solves, target values, tracing."""
