"""Figures beside peers: adapting and decoding here, with PEFT and with transformers, in one run.

Everything runs in one process on one copy of the weights. Knows the engine's front door and the
peers' public calls; nothing else in the repository knows this package.
"""
