"""One request's life: what happens between an HTTP request and the engine and the session store.

The only room that knows both the engine and the sessions; it knows no HTTP.
"""
