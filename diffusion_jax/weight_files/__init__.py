"""Read and write files of weights of other libraries, without executing anything in them."""
