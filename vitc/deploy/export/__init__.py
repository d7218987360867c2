"""A trained model as one file that other programs run, and the proof that it answers as before."""
