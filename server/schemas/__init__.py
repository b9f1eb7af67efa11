"""What leaves the house: the typed answer of each tool.

Some hosts show the model only the structured content, others only the text, so each stands alone. Numbers are rounded
and texts of models and files escaped and capped in `server/answers`.
"""
