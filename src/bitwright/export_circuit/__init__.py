"""A packed net whose values are bits as a circuit of gates.

`compile.py` walks the graph and makes every unit a comparison of a weighted sum of bits (`sums.py`) out of gates (`gates.py`);
`scores.py` and `choice.py` find the class. Each form of file has a writer and a reader; `samples.py` says what is compared.
`export/to_circuit.py` puts it together.
"""
