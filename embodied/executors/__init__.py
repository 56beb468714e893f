"""What turns a policy's chunks into one action a control step (`embodied.protocols.Executor`). Numpy alone."""
