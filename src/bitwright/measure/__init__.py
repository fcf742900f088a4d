"""Measuring: the packed net beside the best other programs of this machine, interleaved, in one process.

`bench.bench` and `conv.conv_bench` give a `table.BenchTable`. Nothing is imported here: `numbers`, which the command
line needs everywhere, costs no torch import.
"""
