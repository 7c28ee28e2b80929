"""Meta-learning algorithms behind one interface: a batch of episodes in, outer gradients out.

`episodes` has the interface, `choice` the names that recipes know them by. None of them knows what
it trains: a causal LM's sessions, an encoder's adapters or a plain module's weights. All of them
move tensors by the server's own inner step (`adapters.inner_loop.descend`), or not at all.
"""
