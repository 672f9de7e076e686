"""`dspex bench`: what the native half costs, beside DSPy and the other peers. Every answer is compared before it is timed."""
