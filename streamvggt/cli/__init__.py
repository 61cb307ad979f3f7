"""The verbs of the command line, one module each: ``add`` declares one, ``run`` does its work."""
