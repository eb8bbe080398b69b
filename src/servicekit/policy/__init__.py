"""The decisions that middleware take, as pure state machines: time and chance go in, an answer comes out, nobody waits."""
