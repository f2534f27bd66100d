"""This room converts whole models: every spatial convolution becomes a fixed one, and a report says what was done."""
