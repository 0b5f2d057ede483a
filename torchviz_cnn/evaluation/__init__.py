"""How far each method can be believed for a network: many metrics of many methods on the same photos."""
