"""Where the time of a run goes: a clock for the loop, its report, and traces of chosen steps."""
