"""What does a product become? One file a form: how it is written, and how what was written is read and checked."""
