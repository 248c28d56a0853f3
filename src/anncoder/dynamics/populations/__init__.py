"""Population dynamics and population balance: drift, growth and fates along a coordinate or a graph."""
