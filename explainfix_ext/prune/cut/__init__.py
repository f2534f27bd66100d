"""What can be removed with the filters that go, as a plan, and the surgery that carries it out."""
