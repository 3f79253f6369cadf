"""The network: backbone, pyramid head, and loading of weights. Imports nothing of the project but its errors."""
