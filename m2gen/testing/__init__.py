"""What tests, benchmarks and tuning share: named problems, random operands, tolerances."""
