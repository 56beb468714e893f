"""Episodes, runner, statistics, latency."""
