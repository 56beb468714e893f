"""Observation encoders: one, one file. `embodied.catalog.ENCODERS` names them."""
