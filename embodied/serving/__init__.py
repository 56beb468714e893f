"""The real-time policy server: sessions and their inference, and the protocols that robots speak to it."""
