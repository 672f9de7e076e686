"""What coding agents get of dspex: tools that read, and a guide."""
