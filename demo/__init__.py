"""The demonstration: a small corpus, the script that builds it, and a look at its nearest neighbours."""
