"""Looking at networks: what they cost and what they did. Import the submodules; plots need matplotlib."""
