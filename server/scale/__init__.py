"""Several engine replicas of one deployment on Ray Serve.

Serve starts, watches, restarts and scales the replicas and finds one for each request. Any of them
can serve any session, because what a session is lies in Redis. This room knows Ray; it knows no
route and no session's insides. Importing it needs `pip install 'innerloop[ray]'`.
"""
