"""The benchmark suite: experiments, runs, records and the report made from them."""
