"""How chunks are drawn from pure noise, or from what is known of them. One algorithm, one file."""
