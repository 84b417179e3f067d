"""The paper's other ways to train, and what it compares. A file states the section that it follows."""
