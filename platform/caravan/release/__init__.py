"""A model as it leaves the house: its files, and the card that says where it comes from."""
