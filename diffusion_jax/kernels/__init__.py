"""Faster forms of network operations, each next to the plain form that it must equal.

Nothing here depends on parameters or flax. Every form can be differentiated in both modes, as often
as the plain one, because likelihoods need Jacobian-vector products of a network.
"""
