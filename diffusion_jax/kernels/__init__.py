"""Faster forms of what networks compute, each beside the plain one that it must equal.

Nothing here knows parameters or flax. Every form is differentiable in both modes, as often as the
plain one, since likelihoods take Jacobian-vector products of a network.
"""
