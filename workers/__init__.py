"""The processes behind the backlog: feed and viewer without models, transcriber and its siblings with them."""
