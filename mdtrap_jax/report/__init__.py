"""What is said of finished runs: statistics, tables, comparisons, figures."""
