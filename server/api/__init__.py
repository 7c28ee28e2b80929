"""The HTTP face: one file per audience. The only room that knows FastAPI.

It turns requests into calls of the flows and errors into problem documents; it decides nothing
about models, adapters or sessions.
"""
