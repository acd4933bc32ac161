"""Read Theano graphs, and control how expressions are built."""
