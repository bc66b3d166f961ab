"""What a recipe will take, in memory, hours and money, said before anything is launched."""
