"""azjax's own tasks, those of the GAE paper."""
