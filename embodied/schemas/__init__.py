"""JSON Schemas of every summary.json."""
