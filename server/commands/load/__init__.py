"""An open-loop load generator: arrivals by the clock, whatever the server does meanwhile.

Clients of the world do not wait for one another. A generator that sends a request when the one
before was answered goes slower when the server does, and never sees the queue ("coordinated
omission", Tene, "How NOT to Measure Latency", 2015). Here every arrival has its time before the
first is sent, and its latency counts from that time. It knows HTTP, through the client's calls,
and nothing of the server.
"""
