"""The run: sharded state, optimizer, step, checkpoints, and the trainer that reads like the run itself."""
