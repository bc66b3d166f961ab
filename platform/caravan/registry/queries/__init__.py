"""What can be asked of the registry. Each function takes a session and gives back plain rows."""
