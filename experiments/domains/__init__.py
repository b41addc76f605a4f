"""Study what makes a small model of a domain's language: its texts, its teacher, and its pairs."""
