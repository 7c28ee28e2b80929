"""What a deployment takes: constants measured, what follows from them, and a simulation of many.

`python -m benchmarks.fleet --help` lists its parts; docs/capacity.md has what they printed.
"""
