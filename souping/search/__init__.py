"""Weight search: settings are checked at composition; `start` opens a search that is asked and told."""
