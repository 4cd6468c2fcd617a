"""A model, from its artifact to labels: sessions, batches, and the models that a server has."""
