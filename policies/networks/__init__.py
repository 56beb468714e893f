"""Networks that predict noise for a chunk of actions."""
