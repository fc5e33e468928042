"""The names that published weights have, one file a layout."""
