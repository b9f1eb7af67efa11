"""What can be found wrong with a job before it exists: `checking.check` for a run, `checking.check_comparison`.

One file for each thing that is looked at: `values` of the configuration, `models`, `prompts`, and what a `paid` teacher
needs. All of them collect into one `Findings`, so that every problem is told at once.
"""
