"""TensorRT engines from a bundle: its graphs in standard ops, in the precision wanted, built and stamped."""
