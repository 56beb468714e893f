"""Recordings of served sessions: one file an episode, written while it runs."""
