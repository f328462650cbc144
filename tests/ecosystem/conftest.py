"""The cases import libraries that the tests' environment does not have: they are not collected."""

collect_ignore_glob = ["groups/*"]
