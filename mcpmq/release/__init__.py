"""What is published: a folder that proves what it is, made, verified, and compared with the one before."""
