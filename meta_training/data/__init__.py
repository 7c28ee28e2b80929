"""The pinned public sources: fetches them by commit, converts them, says whose they are.

Knows repositories, licences and file forms; knows nothing about tokens, episodes or models, which
read the finished files through ``meta_training.tasks``.
"""
