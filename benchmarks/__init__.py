"""What Swapscribe is worth and costs, measured. Each file is a program; others use `scores` and `scorecard`, too."""
