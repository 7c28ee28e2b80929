"""Meta-learning algorithms: from a batch of episodes to an outer loss and its gradients."""
