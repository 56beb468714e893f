"""What a student learns from a teacher. One objective, one file."""
