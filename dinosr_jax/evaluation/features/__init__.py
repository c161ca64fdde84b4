"""Features that probes learn from: of networks and MFCC."""
