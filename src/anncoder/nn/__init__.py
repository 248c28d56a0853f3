"""The parts that networks are made of: the sparse first layer, dense layers, output heads, input noise."""
