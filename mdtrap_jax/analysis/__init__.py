"""What is measured after or beside adaptation."""
