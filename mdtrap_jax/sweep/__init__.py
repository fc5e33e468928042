"""Many runs from one table of configs: which there are, who runs them, what they come to."""
