"""A trained model put to use: predict, evaluate, save, show."""
