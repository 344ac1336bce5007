"""The workstation side of a bundle: graph, proof of parity, writing."""
