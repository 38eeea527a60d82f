"""The fault scorecard: a live stream with swaps, faults drawn from a seed, a checker of what must hold."""
