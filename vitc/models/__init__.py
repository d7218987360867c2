"""Models: a stem turns pixels into tokens, a transformer reads them; CNN baselines; costs."""
