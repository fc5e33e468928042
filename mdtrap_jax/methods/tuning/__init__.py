"""What is trained in a vision-language model: one file for each parameterization."""
