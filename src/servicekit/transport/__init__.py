"""What generated code touches, written once for every wire: channels, call objects, servicer contexts, interceptors.

In: ``router`` finds the method, ``serving`` runs its chain and turns every outcome into a status, ``shapes`` calls the
servicer, whatever form its function has. Out: ``channel`` makes the callables of a stub, ``exchange`` runs the chain
and its attempts, ``calls`` are the objects that the caller holds.
"""
