"""Which layers, tokens and neurons hold a fact: causal tracing, neuron attribution, and layers chosen by either."""

from retcon.locate.attribution import Attributions, How, attribute, top_neurons
from retcon.locate.choose import By, Suggestion, suggest
from retcon.locate.facts import Answer
from retcon.locate.tracing import Kind, Trace, Tracing, trace

__all__ = [
    "Answer",
    "Attributions",
    "By",
    "How",
    "Kind",
    "Suggestion",
    "Trace",
    "Tracing",
    "attribute",
    "suggest",
    "top_neurons",
    "trace",
]
