"""What runs a policy's programs: each takes a module and gives back the same function, faster."""
