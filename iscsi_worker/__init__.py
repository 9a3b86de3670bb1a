"""One per storage node: takes exports, serves their paths, gives them up."""
