"""Read Theano graphs."""
